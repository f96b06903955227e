"""The scheduled deployment: it runs by itself, what has not changed costs nothing, late runs do not pile up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.conftest import Write
from tests.e2e.stack import Stack, until

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.xdist_group("e2e"),
    pytest.mark.usefixtures("worker"),
]

DOCUMENTS = 60
NIGHTLY = "nightly"
EVERY_SECONDS = 8


@pytest.fixture
def nightly(stack: Stack, write: Write) -> Iterator[str]:
    """The path of the scheduled deployment, with nights of eight seconds; afterwards nothing of it is left to run."""
    path = f"/deployments/{stack.deployment('ingest/nightly')['id']}"
    settings = {"embedder": "openai", "store": "pinecone:docs/nightly", "source": str(write(NIGHTLY, DOCUMENTS))}
    stack.patch(path, {"parameters": {"job_id": NIGHTLY, **settings}})
    stack.post(f"{path}/schedules", [{"schedule": {"interval": EVERY_SECONDS}, "active": True, "slug": "often"}])
    yield path
    stack.post(f"{path}/pause_deployment", {})
    stack.openai.release(drop=True)
    until("the last night's end", lambda: None if runs(stack, "PENDING", "RUNNING") else True)


def runs(stack: Stack, *types: str) -> list[dict[str, Any]]:
    return stack.runs_of("ingest/nightly", *types)


def test_nights_run_by_themselves_and_do_not_pile_up(stack: Stack, nightly: str) -> None:
    """A night the one before has not left free is cancelled; the next finds everything unchanged and pays nothing."""
    stack.openai.hold()
    stack.openai.until("held", 1, timeout_seconds=60)
    skipped = until("a night that is skipped", lambda: next(iter(runs(stack, "CANCELLED")), None))
    assert skipped["state"]["message"] == "Deployment concurrency limit reached."
    stack.openai.release()
    until("two nights", lambda: len(runs(stack, "COMPLETED")) >= 2 or None)
    second, first = until("two events", lambda: two(stack.events("millrace.job.finished", NIGHTLY)))
    assert (first["payload"]["upserted"], first["payload"]["unchanged"]) == (DOCUMENTS, 0)
    assert (second["payload"]["upserted"], second["payload"]["unchanged"]) == (0, DOCUMENTS)
    assert stack.openai.state()["paid_again"] == 0

    stack.post(f"{nightly}/pause_deployment", {})
    assert runs(stack, "SCHEDULED") == []
    stack.post(f"{nightly}/resume_deployment", {})
    until("nights to come", lambda: runs(stack, "SCHEDULED") or None)


def two(events: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """The first two of them, the newest first."""
    return events[-2:] if len(events) >= 2 else None

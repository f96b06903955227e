"""The flows called from another flow: the report comes back, and what went wrong is raised."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from prefect import flow

from flows.ingest import ingest
from tasks.checkpoints.blobs import FolderBlobs
from tasks.checkpoints.keys import lock_key
from tasks.checkpoints.lock import one_writer
from tasks.errors import JobBusyError, RunFailedError, UsageError

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("results")]


@flow
async def parent(**parameters: Any) -> Any:
    """A flow that has more to do than to ingest."""
    return await ingest(**parameters)


def parameters(folder: Path, *lines: str) -> dict[str, Any]:
    source = folder / "source.jsonl"
    source.write_text("\n".join(lines) + "\n")
    return {"source": str(source), "job_id": "child", "store": f"lancedb:{folder}/lance/child"}


def line(number: int) -> str:
    return json.dumps({"id": f"d{number}", "text": f"text {number}"})


async def test_a_subflow_returns_its_report(tmp_path: Path) -> None:
    """And the second one says that nothing has changed."""
    given = parameters(tmp_path, *map(line, range(5)))
    first, second = await parent(**given), await parent(**given)
    assert (first["job_id"], first["documents"], first["upserted"]) == ("child", 5, 5)
    assert (second["documents"], second["unchanged"]) == (5, 5)


async def test_a_subflow_that_fails_raises_with_its_report(tmp_path: Path) -> None:
    """The caller sees how far it came."""
    with pytest.raises(RunFailedError, match="1 dead letters, 0 are allowed") as raised:
        await parent(**parameters(tmp_path, line(0), "{not JSON"))
    assert (raised.value.report["upserted"], raised.value.report["dead_letters"]) == (1, 1)


async def test_a_subflow_with_bad_input_raises_before_it_starts(tmp_path: Path) -> None:
    """One line that says what to do."""
    with pytest.raises(UsageError, match=r"missing\.jsonl"):
        await parent(source=str(tmp_path / "missing.jsonl"), job_id="child", store=f"lancedb:{tmp_path}/lance/child")


async def test_a_subflow_of_a_job_that_is_busy_raises(tmp_path: Path, results: Path) -> None:
    """The other run does the work; this one has written nothing."""
    lock = one_writer(FolderBlobs(results), lock_key("child"), owner="another run", wait=False, on_lost=print)
    async with lock:
        with pytest.raises(JobBusyError, match="another run"):
            await parent(**parameters(tmp_path, line(0)))
    assert (await parent(**parameters(tmp_path, line(0))))["upserted"] == 1

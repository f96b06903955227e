"""A failed run is retried with the UI's own button, goes on where it stopped, and pays for no text twice."""

from __future__ import annotations

import pytest

from tests.e2e.browser import Screen
from tests.e2e.conftest import Write
from tests.e2e.stack import Stack

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.xdist_group("e2e"),
    pytest.mark.usefixtures("worker"),
]

DOCUMENTS = 4000


def test_a_run_that_failed_half_way_is_retried_from_its_page(stack: Stack, browser: Screen, write: Write) -> None:
    """The store goes down in the middle; after Retry all is there, and no text was embedded twice."""
    before = stack.openai.reset()
    assert before["texts"] == 0
    stack.pinecone.set_faults(fail_after=15, only=["upsert"])
    run_id = stack.start(
        "ingest/ingest",
        source=str(write("retry", DOCUMENTS)),
        job_id="retried",
        batch_size=100,
        checkpoint_interval=10,
        embedder={"kind": "openai", "model": "text-embedding-3-small"},
        store={"kind": "pinecone", "index": "docs", "namespace": "retried"},
    )
    run = stack.until_state(run_id, "FAILED")
    assert run["name"] == f"ingest retried {DOCUMENTS:,} documents"
    assert run["state"]["message"].startswith("the store is down: ")
    browser.open(f"runs/flow-run/{run_id}")
    browser.shoot("failed")

    stack.pinecone.set_faults()
    browser.retry()
    stack.until_state(run_id, "COMPLETED", attempt=2)
    paid = stack.openai.state()
    assert paid["distinct_texts"] == DOCUMENTS
    assert paid["paid_again"] == 0

    browser.open(f"runs/flow-run/{run_id}")
    browser.shoot("completed")
    browser.page.get_by_text("Artifacts", exact=True).first.click()
    browser.page.get_by_text("retried-report").first.wait_for()
    browser.shoot("artifacts")
    browser.page.get_by_text("retried-report").first.click()
    browser.page.get_by_role("heading", name="Throughput").wait_for()
    browser.shoot("report")

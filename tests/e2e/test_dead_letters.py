"""What a job gives up on: the run fails above the limit, says so as an event, and Retry finishes it."""

from __future__ import annotations

import httpx
import pytest

from tests.e2e.conftest import Write
from tests.e2e.stack import Stack, until
from tests.emulators.process import ROOT

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.xdist_group("e2e"),
    pytest.mark.usefixtures("worker"),
]

DOCUMENTS = 60
FINISHED = "millrace.job.finished"


def start(stack: Stack, source: object, job_id: str, max_failed: int) -> str:
    return stack.start(
        "ingest/ingest",
        source=str(source),
        job_id=job_id,
        batch_size=20,
        max_failed=max_failed,
        embedder="openai",
        store=f"pinecone:docs/{job_id}",
    )


def test_too_many_dead_letters_fail_the_run_and_retry_sends_them_again(stack: Stack, write: Write) -> None:
    """The event counts them by reason; the retry pays for those two texts and no other."""
    stack.openai.set_faults(poison=["text of document 7", "text of document 50"])
    run_id = start(stack, write("refused", DOCUMENTS), "refused", max_failed=1)
    failed = stack.until_state(run_id, "FAILED")
    assert failed["state"]["message"].startswith("2 dead letters, 1 are allowed")
    event = stack.until_event("millrace.job.too-many-dead-letters", "refused")
    assert event["payload"] == {"dead_letters": 2, "allowed": 1, "by_reason": {"rejected": 2}}
    assert run_id in {part["prefect.resource.id"].rpartition(".")[2] for part in event["related"]}

    stack.openai.set_faults()
    stack.retry(run_id)
    stack.until_state(run_id, "COMPLETED", attempt=2)
    paid = stack.openai.state()
    assert (paid["distinct_texts"], paid["paid_again"]) == (DOCUMENTS, 0)


def test_the_example_of_an_automation_starts_a_replay(stack: Stack, write: Write) -> None:
    """The script in docs/deploying.md, as it stands there: a finished job's dead letters are sent once more."""
    stack.script(code_block((ROOT / "docs/deploying.md").read_text(), "python"))
    stack.openai.set_faults(poison=["text of document 7"])
    stack.until_state(start(stack, write("docs", DOCUMENTS), "docs", max_failed=1), "COMPLETED")
    assert stack.until_event(FINISHED, "docs")["payload"]["dead_letters"] == 1
    replay = until("the replay", lambda: next(iter(stack.runs_of("replay/replay")), None))
    stack.openai.set_faults()
    assert replay["parameters"]["job_id"] == "docs"
    stack.until_state(replay["id"], "COMPLETED", "FAILED")


def test_bad_parameters_are_refused_before_a_run_exists(stack: Stack) -> None:
    """409, and the answer names the parameter."""
    before = len(stack.runs_of("ingest/ingest"))
    with pytest.raises(httpx.HTTPStatusError) as refused:
        stack.start("ingest/ingest", source="x.jsonl", batch_size=0)
    assert refused.value.response.status_code == 409
    assert "batch_size" in refused.value.response.text
    assert len(stack.runs_of("ingest/ingest")) == before


def code_block(page: str, language: str) -> str:
    """The first block of a page in this language."""
    return page.partition(f"```{language}\n")[2].partition("\n```")[0]

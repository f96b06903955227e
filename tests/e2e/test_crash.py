"""A run whose process is killed is found and finished by a retry; a cancelled one stops with a whole ledger.

A machine that is lost with worker and run is found by an automation, after 90 seconds of silence: too slow for every
change, so only its definition is tested here.
"""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from flows.prepare_server import AUTOMATION
from tests.e2e.conftest import Write
from tests.e2e.stack import Stack, children_of, until

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.xdist_group("e2e"),
]

DOCUMENTS = 600
BATCH = 20
IN_FLIGHT = 4
PASSED = 10  # embedding requests answered before the gate closes


def start_and_hold(stack: Stack, source: object, job_id: str) -> str:
    """A run whose embedder does the work of every request from the eleventh on, bills it, and does not answer."""
    stack.openai.hold(after=PASSED, when="after")
    run_id = stack.start("ingest/ingest", **parameters(source, job_id))
    stack.until_state(run_id, "RUNNING")
    stack.openai.until("held", IN_FLIGHT)
    return run_id


def parameters(source: object, job_id: str) -> dict[str, object]:
    return {
        "source": str(source),
        "job_id": job_id,
        "batch_size": BATCH,
        "checkpoint_interval": 2,
        "concurrency": IN_FLIGHT,
        "embedder": "openai",
        "store": f"pinecone:docs/{job_id}",
    }


def is_reported_by_worker(stack: Stack, run_id: str) -> bool:
    """Whether the run's worker had something to say after the crash."""
    crashed = stack.run(run_id)["state"]["timestamp"]
    return any(
        line["name"] == "prefect.flow_runs.worker" and line["timestamp"] > crashed for line in stack.logs(run_id)
    )


def check_paid(stack: Stack) -> None:
    """Everything once, and what nobody was left to hear the answer of once more."""
    paid = stack.openai.state()
    assert paid["distinct_texts"] == DOCUMENTS
    assert paid["paid_again"] <= IN_FLIGHT * BATCH


def test_a_killed_run_is_found_and_retried(stack: Stack, worker: subprocess.Popen[bytes], write: Write) -> None:
    """Crashed, and after Retry only what was on its way is paid again."""
    run_id = start_and_hold(stack, write("killed", DOCUMENTS), "killed")
    os.kill(children_of(worker.pid)[-1], signal.SIGKILL)
    stack.until_state(run_id, "CRASHED")
    # Its runner reports it, then the worker, which logs a line: a retry between the two would be overwritten.
    until("the worker's report", lambda: is_reported_by_worker(stack, run_id) or None)
    stack.openai.release(drop=True)
    stack.retry(run_id)
    stack.until_state(run_id, "COMPLETED", attempt=2)
    check_paid(stack)


@pytest.mark.usefixtures("worker")
def test_a_cancelled_run_stops_with_a_whole_ledger(stack: Stack, write: Write) -> None:
    """What the UI's button proposes ends the process; a new run of the job goes on with what is missing."""
    source = write("cancelled", DOCUMENTS)
    run_id = start_and_hold(stack, source, "cancelled")
    stack.set_state(run_id, type="CANCELLING", name="Cancelling", message="Cancelled from the UI")
    stack.until_state(run_id, "CANCELLED")
    stack.openai.release(drop=True)
    again = stack.start("ingest/ingest", **parameters(source, "cancelled"))
    stack.until_state(again, "COMPLETED")
    check_paid(stack)
    counts = stack.until_event("millrace.job.finished", "cancelled")["payload"]
    assert (counts["documents"], counts["upserted"] + counts["unchanged"]) == (DOCUMENTS, DOCUMENTS)


def test_a_machine_that_is_lost_is_looked_for(stack: Stack) -> None:
    """The set-up made the automation that crashes silent runs, and waits for three of their heartbeats."""
    found = stack.post("/automations/filter", {"automations": {"name": {"any_": [AUTOMATION]}}})
    assert [automation["enabled"] for automation in found] == [True]
    trigger, (action,) = found[0]["trigger"], found[0]["actions"]
    assert (trigger["posture"], trigger["after"], trigger["within"]) == (
        "Proactive",
        ["prefect.flow-run.heartbeat"],
        90.0,
    )
    assert (action["type"], action["state"]) == ("change-flow-run-state", "CRASHED")
    job_variables = stack.deployment("ingest/ingest")["job_variables"]
    assert 3 * int(job_variables["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"]) == trigger["within"]

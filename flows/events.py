"""Events that automations can hang on: a job is finished, a job has too many dead letters.

| event | when |
|---|---|
| `millrace.job.finished` | a run of `ingest` or `replay` ended as Completed |
| `millrace.job.too-many-dead-letters` | a run gave up on more documents than `max_failed` allows |

The resource is the job: `prefect.resource.id` is `millrace.job.{job_id}`, `prefect.resource.name` is the job's id,
`millrace.verb` is `ingest` or `replay`. Prefect adds the flow run, flow and deployment as related resources. The
payload is counts, never a document's id or text.
"""

from __future__ import annotations

from typing import Any

from prefect.events import emit_event

from tasks.tally import Report, Tally

FINISHED = "millrace.job.finished"
TOO_MANY_DEAD_LETTERS = "millrace.job.too-many-dead-letters"
_COUNTS = ("documents", "upserted", "unchanged", "duplicates", "dead_letters", "model_tokens", "seconds")


def announce_finished(verb: str, report: Report) -> None:
    """Say that a job is finished. The payload holds the report's counts under their own names."""
    _emit(FINISHED, verb, report.job_id, {name: getattr(report, name) for name in _COUNTS})


def announce_dead_letters(verb: str, report: Report, tally: Tally, allowed: int) -> None:
    """Say that too many were given up on. The payload: ``dead_letters``, ``allowed`` and counts ``by_reason``."""
    by_reason = {reason.value: count for reason, count in sorted(tally.dead_letters.items())}
    payload = {"dead_letters": report.dead_letters, "allowed": allowed, "by_reason": by_reason}
    _emit(TOO_MANY_DEAD_LETTERS, verb, report.job_id, payload)


def _emit(event: str, verb: str, job_id: str, payload: dict[str, Any]) -> None:
    resource = {
        "prefect.resource.id": f"millrace.job.{job_id}",
        "prefect.resource.name": job_id,
        "millrace.verb": verb,
    }
    emit_event(event, resource=resource, payload=payload)

"""Send a job's dead letters again, and nothing else: ``python flows/replay.py JOB --reason exhausted``."""

from __future__ import annotations

from typing import Annotated, Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Failed
from pydantic import Field

from flows.display import logger
from flows.run import BAD_INPUT, run_job
from flows.storage import flow_storage, known_job, recorded_settings
from tasks.errors import UsageError
from tasks.records import Reason
from tasks.settings import JOB_ID_PATTERN, MaxFailed


@flow(name="replay", persist_result=True, result_serializer="json")
async def replay(
    job_id: Annotated[str, Field(pattern=rf"^{JOB_ID_PATTERN}$")],
    reason: tuple[Reason, ...] = (),
    max_failed: MaxFailed = 0,
    wait: bool = False,  # noqa: FBT001, FBT002
) -> Any:
    """Send a job's dead letters again, with the settings of its last run; nothing else is sent.

    What fails again goes back to the file with one more attempt, what lands leaves it.

    Args:
        job_id: The job.
        reason: Only dead letters of these reasons: malformed, invalid, too_large, rejected, exhausted. By default all.
        max_failed: Dead letters above this, a count or a percentage such as `5%`, end the run as Failed.
        wait: Wait for another run of the same job to end instead of ending at once.

    Returns:
        The report, as a dictionary.
    """
    settings = await _settings(job_id, max_failed=max_failed, wait=wait)
    return settings if isinstance(settings, State) else await run_job(settings, replaying=reason)


async def _settings(job_id: str, **changed: Any) -> Any:
    try:
        record = await known_job(flow_storage(logger().warning), job_id)
    except UsageError as error:
        return Failed(name=BAD_INPUT, message=str(error), data=error)
    return recorded_settings(record).model_copy(update=changed)


if __name__ == "__main__":
    from flows.command_line import main

    main(replay, "python flows/replay.py")

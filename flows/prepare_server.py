"""Prepare a Prefect server for Millrace's deployments: ``python flows/prepare_server.py``, as often as you like.

It makes the work pool of `prefect.yaml`, the global concurrency limits that are asked for, and the automation that
finds runs whose machine is gone. What is there already is left, or brought up to date where it is ours.
"""

from __future__ import annotations

import re
import sys
from datetime import timedelta
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectAlreadyExists
from prefect.settings import get_current_settings

from flows.local_server import check_answers
from tasks.errors import MillraceError, UsageError

WORK_POOL = "millrace"
AUTOMATION = "crash-silent-millrace-runs"
SILENT_SECONDS = 90
"""Three heartbeats of the 30 seconds that prefect.yaml sets; a run of which none came is taken for dead."""

app = App(name="python flows/prepare_server.py", help=__doc__, result_action="return_value")


def crash_silent_runs(silent_seconds: int) -> AutomationCore:
    """The automation that marks runs as Crashed which no longer say that they live, so that they can be retried.

    A run that ends says so, whatever the name of its last state. Only runs tagged `millrace` are watched: others may
    have a heartbeat every three minutes.
    """
    return AutomationCore(
        name=AUTOMATION,
        description="A Millrace run that is silent has lost its machine; as Crashed it can be retried.",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.*"},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related={"prefect.resource.id": "prefect.tag.millrace"},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=silent_seconds),
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message="The run's heartbeat stopped")],
    )


@app.default
async def prepare(
    *,
    limit: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    silent_seconds: int = SILENT_SECONDS,
) -> None:
    """Make what the deployments need, and say what was made.

    Args:
        limit: A global concurrency limit as `NAME=SLOTS`, such as `millrace-openai=20`; may be given several times.
        silent_seconds: A run without a sign of life for so long is marked as Crashed; three heartbeats at least.
    """
    slots = dict(map(_parse_limit, limit))
    url = get_current_settings().api.url
    if url is None:
        raise UsageError("set PREFECT_API_URL to the server to prepare, such as http://127.0.0.1:4200/api")
    check_answers(url)
    async with get_client() as client:
        print(f"work pool {WORK_POOL}: {await _make_work_pool(client)}")
        for name, number in slots.items():
            await client.upsert_global_concurrency_limit_by_name(name, number)
            print(f"concurrency limit {name}: {number:,} slots")
        print(f"automation {AUTOMATION}: {await _make_automation(client, crash_silent_runs(silent_seconds))}")


async def _make_work_pool(client: PrefectClient) -> str:
    try:
        await client.create_work_pool(WorkPoolCreate(name=WORK_POOL, type="process"))
    except ObjectAlreadyExists:
        return "is there already"
    return "made"


async def _make_automation(client: PrefectClient, wanted: AutomationCore) -> str:
    found = await client.read_automations_by_name(AUTOMATION)
    if not found:
        await client.create_automation(wanted)
        return "made"
    await client.update_automation(found[0].id, wanted)
    return "brought up to date"


def _parse_limit(text: str) -> tuple[str, int]:
    match = re.fullmatch(r"([^=]+)=([1-9]\d*)", text)
    if match is None:
        raise UsageError(f"--limit {text!r} is not NAME=SLOTS, such as millrace-openai=20")
    return match[1], int(match[2])


def main() -> None:
    """Parse, do, print; ends the process with the exit status."""
    try:
        app(exit_on_error=False, print_error=False)
    except (CycloptsError, MillraceError) as error:
        sys.stderr.write(f"millrace: {error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()

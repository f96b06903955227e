"""A minute in real time: the command line against a provider that counts every rolling minute for itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.command import Command, Finished, finish, server_url
from tests.emulators.process import EmulatorProcess

pytestmark = [
    pytest.mark.cli,
    pytest.mark.slow,
    pytest.mark.xdist_group("minute"),
    pytest.mark.usefixtures("prefect_server"),
]

PER_MINUTE = 1_200


@contextmanager
def provider(folder: Path, *arguments: str) -> Iterator[tuple[EmulatorProcess, Command]]:
    """A limited OpenAI, and a folder for the runs that use it."""
    with EmulatorProcess("openai", "--latency", "0.05", *arguments) as openai:
        yield openai, Command(folder, server_url(), OPENAI_API_KEY="sk-emulator", OPENAI_BASE_URL=openai.base_url)


def arguments(folder: Path, job: str, requests: int) -> list[object]:
    """A run of so many requests, one document each."""
    source = folder / f"{job}.jsonl"
    source.write_bytes(b"".join(orjson.dumps({"id": f"d{n}", "text": f"{job} {n}"}) + b"\n" for n in range(requests)))
    return [
        *("--source", source, "--job-id", job, "--json", "--embedder", "openai:text-embedding-3-small:8"),
        *("--store", f"lancedb:{folder}/lance/{job}", "--batch-size", 1, "--checkpoint-interval", 100),
    ]


def assert_a_well_used_minute(state: dict[str, Any], runs: list[Finished]) -> None:
    """Nothing refused, no rolling minute above the limit, and 95 % of it used."""
    assert [run.status for run in runs] == [0] * len(runs), [run.stderr for run in runs]
    assert state["refused"] == {}
    assert state["fullest_minute"] <= PER_MINUTE
    accepted = state["texts"] + state["tiny_requests"]
    print(f"{accepted=} fullest={state['fullest_minute']} seconds={state['accepting_seconds']:.1f}")  # noqa: T201
    assert accepted / state["accepting_seconds"] * 60 >= 0.95 * PER_MINUTE


def test_one_process_uses_its_minute_and_no_more(tmp_path: Path) -> None:
    """1,200 requests a minute asked of a provider that refuses the 1,201st."""
    with provider(tmp_path, "--requests-per-minute", str(PER_MINUTE)) as (openai, command):
        # Without preflight, whose request goes seconds before the others and would count as time that was not used.
        run = command.run(*arguments(tmp_path, "one", 1_500), "--rpm", PER_MINUTE, "--no-preflight")
        assert_a_well_used_minute(openai.state(), [run])


def test_two_processes_share_a_minute(tmp_path: Path) -> None:
    """Each is told of the whole 1,200; together they keep it, and neither waits for the other's end."""
    with provider(tmp_path, "--requests-per-minute", str(PER_MINUTE)) as (openai, command):
        each = [arguments(tmp_path, job, 1_200) for job in ("one", "two")]
        processes = [command.start(*one, "--rpm", PER_MINUTE, "--no-preflight") for one in each]
        runs = [finish(process) for process in processes]
        assert_a_well_used_minute(openai.state(), runs)
        seconds = [run.report["seconds"] for run in runs]
        assert max(seconds) < 1.3 * min(seconds)


def test_a_limit_that_nobody_told_is_found(tmp_path: Path) -> None:
    """Without --rpm against 600 a minute, which no header names: the run completes, under 3 % are refused."""
    with provider(tmp_path, "--requests-per-minute", "600", "--hide-limits") as (openai, command):
        run = command.run(*arguments(tmp_path, "one", 1_100), "--no-preflight")
        assert run.status == 0, run.stderr
        state = openai.state()
        refused = sum(state["refused"].values())
        print(f"{refused=} of {state['requests']} in {state['accepting_seconds']:.1f} s")  # noqa: T201
        assert (run.report["upserted"], run.report["dead_letters"]) == (1_100, 0)
        assert refused < 0.03 * state["requests"]

"""``flows/replay.py`` and ``flows/jobs.py`` as processes, and two runs of one job at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.cli.test_ingest import numbered, write
from tests.command import Command, finish, server_url
from tests.emulators.process import EmulatorProcess

pytestmark = [pytest.mark.cli, pytest.mark.slow]


@pytest.fixture
def command(prefect_server: None, tmp_path: Path) -> Command:
    """Against the tests' standing Prefect server."""
    return Command(tmp_path, server_url())


@pytest.fixture
def openai(command: Command) -> Iterator[EmulatorProcess]:
    with EmulatorProcess("openai", "--api-key", "sk-key") as openai:
        command.environment |= {"OPENAI_API_KEY": "sk-key", "OPENAI_BASE_URL": openai.base_url}
        yield openai


def letters(command: Command) -> list[dict[str, Any]]:
    (file,) = (command.folder / "results").rglob("dead_letters.jsonl")
    return [orjson.loads(line) for line in file.read_bytes().splitlines()]


def test_a_jobs_life_from_its_dead_letters_to_its_cleaning(command: Command) -> None:
    """Ingest, replay by reason, list, show, refuse to clean what is not finished, finish it, clean it."""
    source = command.folder / "docs.jsonl"
    write(source, *numbered(4), {"id": "empty", "text": ""}, "{broken")
    assert command.run("--source", "docs.jsonl", "--job-id", "j").status == 1
    assert [(letter["id"], letter["reason"], letter["attempts"]) for letter in letters(command)] == [
        ("empty", "invalid", 1),
        (None, "malformed", 1),
    ]

    again = command.run("j", "--reason", "invalid", "--json", flow="replay")
    assert (again.status, again.report["documents"], again.report["dead_letters"]) == (1, 1, 1), again.stderr
    assert {letter["reason"]: letter["attempts"] for letter in letters(command)} == {"invalid": 2, "malformed": 1}

    write(source, *numbered(4), {"id": "empty", "text": "no more"}, {"id": "mended", "text": "whole"})
    done = command.run("j", "--json", flow="replay")
    assert (done.status, done.report["upserted"]) == (0, 2), done.stderr

    listed = command.run("list", flow="jobs")
    assert (listed.status, listed.stdout.splitlines()[0].split()[:2]) == (0, ["job", "state"]), listed.stderr
    assert listed.stdout.splitlines()[1].split()[:4] == ["j", "Completed", "6", "0"]
    shown = command.run("show", "j", flow="jobs").stdout
    assert "vectors        0 files, 0 bytes" in shown
    assert "hashing" in shown

    cleaned = command.run("clean", "j", flow="jobs")
    assert (cleaned.status, cleaned.stdout.startswith("removed ")) == (0, True), cleaned.stderr
    left = [path.name for path in (command.folder / "results" / "millrace").rglob("*") if path.is_file()]
    assert left == ["lock"]


def test_of_two_runs_of_one_job_the_second_says_so_and_ends_or_waits(command: Command, openai: EmulatorProcess) -> None:
    """The one that waits finds everything done and pays nothing."""
    write(command.folder / "docs.jsonl", *numbered(40))
    given = ("--source", "docs.jsonl", "--job-id", "j", "--embedder", "openai", "--no-preflight", "--batch-size", 10)
    openai.hold(after=1)
    first = command.start(*given, "--json")
    openai.until("held", 3, timeout_seconds=120)

    second = command.run(*given)
    assert second.status == 1
    assert "another run writes this job (flow run " in second.stderr
    assert "Traceback" not in second.stderr

    third = command.start(*given, "--wait", "--json")
    openai.release()
    assert finish(first).report["upserted"] == 40
    waited = finish(third)
    assert (waited.status, waited.report["unchanged"], waited.report["upserted"]) == (0, 40, 0), waited.stderr
    state = openai.state()
    assert (state["texts"], state["paid_again"]) == (40, 0)

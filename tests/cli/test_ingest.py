"""``python flows/ingest.py`` as a process: what it prints, what it leaves, and its exit status."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.command import Command, finish, server_url
from tests.emulators.process import EmulatorProcess

pytestmark = [pytest.mark.cli]

REPORT_KEYS = {
    *("job_id", "documents", "upserted", "unchanged", "duplicates", "dead_letters", "resumed", "batches"),
    *("embedding_requests", "model_tokens", "upsert_requests", "retries", "seconds", "documents_per_second"),
    "peak_rss_bytes",
}
SECRET_TEXT = "nobody but the embedder and the store may see this"


@pytest.fixture
def command(prefect_server: None, tmp_path: Path) -> Command:
    """Against the tests' standing Prefect server."""
    return Command(tmp_path, server_url())


@pytest.fixture
def providers(tmp_path: Path) -> Iterator[tuple[EmulatorProcess, EmulatorProcess]]:
    """OpenAI and Pinecone."""
    with (
        EmulatorProcess("openai", "--api-key", "sk-very-secret") as openai,
        EmulatorProcess("pinecone", "--api-key", "pc-very-secret") as pinecone,
    ):
        yield openai, pinecone


def paying(command: Command, providers: tuple[EmulatorProcess, EmulatorProcess]) -> Command:
    """The same command, told where both providers are."""
    openai, pinecone = providers
    command.environment |= {
        "OPENAI_API_KEY": "sk-very-secret",
        "OPENAI_BASE_URL": openai.base_url,
        "PINECONE_API_KEY": "pc-very-secret",
        "PINECONE_CONTROLLER_HOST": pinecone.base_url,
    }
    return command


def write(file: Path, *lines: dict[str, Any] | str) -> Path:
    file.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return file


def numbered(count: int) -> list[dict[str, Any]]:
    return [{"id": f"d{i}", "text": f"{SECRET_TEXT} {i}", "metadata": {"n": i}} for i in range(count)]


def test_a_first_run_on_a_fresh_machine_fills_a_collection_that_answers(tmp_path: Path) -> None:
    """No server, no option, no network: the sample corpus, a quiet terminal, and a search that finds it."""
    command = Command(tmp_path)
    first = command.run("--json")
    assert (first.status, "Traceback" in first.stderr) == (0, False), first.stderr
    assert first.report.keys() >= REPORT_KEYS
    assert first.report["upserted"] == first.report["documents"] > 3000
    assert [line for line in first.stderr.splitlines() if "ERROR" in line or "WARNING" in line] == []

    found = command.run("how do I split a string", "--json", flow="search")
    assert found.status == 0
    hits = orjson.loads(found.stdout)
    assert len(hits) == 5
    assert any("split" in hit["id"] for hit in hits)
    assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)
    assert all(hit["text"] for hit in hits)


def test_two_first_runs_at_once_start_one_server_after_the_other(tmp_path: Path) -> None:
    """Both make the same new database."""
    command = Command(tmp_path)
    write(tmp_path / "few.jsonl", *numbered(3))
    runs = [command.start("--source", "few.jsonl", "--job-id", job, "--json") for job in ("one", "other")]
    ended = [finish(run) for run in runs]
    assert [(each.status, each.stderr.count("Traceback")) for each in ended] == [(0, 0), (0, 0)], ended


def test_the_report_is_a_file_a_line_and_a_table(command: Command) -> None:
    """All three say the same; standard output holds nothing but the line."""
    write(command.folder / "docs.jsonl", *numbered(3))
    done = command.run("--source", "docs.jsonl", "--job-id", "j", "--json", "--report", "report.json")
    assert done.status == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert done.report == orjson.loads((command.folder / "report.json").read_bytes())
    assert done.report["job_id"] == "j"
    assert "documents             3" in done.stderr
    assert SECRET_TEXT not in done.stdout + done.stderr

    again = command.run("--source", "docs.jsonl", "--job-id", "j", "--json")
    assert (again.report["unchanged"], again.report["upserted"], again.report["resumed"]) == (3, 0, True)


def test_standard_input_is_a_source(command: Command) -> None:
    """In a pipe, as in `zcat documents.jsonl.gz | python flows/ingest.py --source -`."""
    lines = b"".join(orjson.dumps(document) + b"\n" for document in numbered(5))
    done = command.run("--source", "-", "--job-id", "piped", "--json", stdin=lines)
    assert done.status == 0, done.stderr
    assert done.report["upserted"] == 5


def test_what_cannot_be_loaded_is_a_dead_letter_and_the_rest_lands(command: Command) -> None:
    """Exit status 1 above `--max-failed`, 0 up to it; the file says line and reason."""
    write(
        command.folder / "docs.jsonl",
        *numbered(4),
        "{broken",
        {"text": "no id"},
        {"id": "no text"},
        {"id": "empty", "text": ""},
        *[{"id": "late", "text": "after the bad ones"}],
    )
    failed = command.run("--source", "docs.jsonl", "--job-id", "j", "--json")
    assert failed.status == 1
    assert (failed.report["upserted"], failed.report["dead_letters"]) == (5, 4)
    assert "4 dead letters, 0 are allowed" in failed.stderr
    (file,) = (command.folder / "results").rglob("dead_letters.jsonl")
    letters = [orjson.loads(line) for line in file.read_bytes().splitlines()]
    assert [letter["position"] for letter in letters] == [5, 6, 7, 8]
    assert {letter["reason"] for letter in letters} <= {"malformed", "invalid"}

    assert command.run("--source", "docs.jsonl", "--job-id", "j", "--max-failed", 4).status == 0
    assert command.run("--source", "docs.jsonl", "--job-id", "j", "--max-failed", "50%").status == 0


def test_two_options_fill_pinecone_with_openais_vectors(
    command: Command, providers: tuple[EmulatorProcess, EmulatorProcess]
) -> None:
    """And neither key nor text is in what is printed or kept."""
    openai, pinecone = providers
    write(command.folder / "docs.jsonl", *numbered(250))
    options = ("--embedder", "openai:text-embedding-3-small", "--store", "pinecone:docs")
    done = paying(command, providers).run("--source", "docs.jsonl", *options, "--create", "--json")
    assert done.status == 0, done.stderr
    assert done.report["upserted"] == 250
    assert openai.state()["texts"] == 250
    assert pinecone.state()["stored"] == {"docs": {"__default__": 250}}

    found = command.run(f"{SECRET_TEXT} 7", *options, "--limit", 1, "--json", flow="search")
    assert [hit["id"] for hit in orjson.loads(found.stdout)] == ["d7"]
    kept = b"".join(
        path.read_bytes() for path in command.folder.rglob("*") if path.is_file() and "docs" not in path.name
    )
    for secret in ("very-secret", SECRET_TEXT):
        assert secret not in done.stdout + done.stderr
        assert secret.encode() not in kept


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_leaves_a_whole_ledger(
    command: Command, providers: tuple[EmulatorProcess, EmulatorProcess], times: int
) -> None:
    """Once: requests under way finish. Twice: they are dropped. The next run goes on."""
    openai, pinecone = providers
    write(command.folder / "docs.jsonl", *numbered(1000))
    arguments = ("--source", "docs.jsonl", "--job-id", "j", "--embedder", "openai", "--store", "pinecone:docs")
    openai.hold(after=20)
    run = paying(command, providers).start(*arguments, "--create", "--batch-size", 10, "--concurrency", 4, "--json")
    openai.until("held", 4)
    run.send_signal(signal.SIGINT)
    if times == 1:
        openai.release()
    else:
        assert run.stderr is not None
        while b"Ctrl-C again" not in run.stderr.readline():  # two signals at once would be one
            assert run.poll() is None
        run.send_signal(signal.SIGINT)
    stopped = finish(run)
    openai.release()
    assert stopped.status == 130, stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert "run again to go on" in stopped.stderr

    done = command.run(*arguments, "--json")
    assert done.status == 0, done.stderr
    assert (done.report["documents"], done.report["dead_letters"]) == (1000, 0)
    assert done.report["unchanged"] + done.report["upserted"] == 1000
    assert pinecone.state()["stored"] == {"docs": {"__default__": 1000}}
    lost_at_most = 0 if times == 1 else 4 * 10
    assert openai.state()["paid_again"] <= lost_at_most

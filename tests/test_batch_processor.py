"""`BatchProcessor`: the lesson's exercise on the flows' own machinery."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flows.batch_processor import BatchProcessor
from tasks.errors import JobBusyError, RefusedError, UnavailableError


def numbered(count: int) -> list[dict[str, Any]]:
    return [{"id": f"doc-{i}", "text": f"Content {i}"} for i in range(count)]


class Recording:
    """A function that remembers what it was given, and raises where ``before`` says so."""

    def __init__(self, before: Callable[[list[dict[str, Any]]], None] = lambda _: None) -> None:
        self.batches: list[list[str]] = []
        self.done: list[str] = []
        self._before = before

    def __call__(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        ids = [document["id"] for document in batch]
        self.batches.append(ids)
        self._before(batch)
        self.done += ids
        return [{"id": id_, "result": "ok"} for id_ in ids]


@pytest.fixture
def processor(tmp_path: Path) -> BatchProcessor:
    return BatchProcessor(batch_size=10, checkpoint_interval=2, checkpoint_dir=tmp_path)


def test_the_lessons_own_example(processor: BatchProcessor) -> None:
    recording = Recording()
    assert processor.process(numbered(100), recording, "test-job") == {
        "processed": 100,
        "failed": 0,
        "resumed": False,
    }
    assert [len(batch) for batch in recording.batches] == [10] * 10
    assert recording.done == [document["id"] for document in numbered(100)]


def test_a_second_run_calls_nothing(processor: BatchProcessor) -> None:
    processor.process(numbered(25), Recording(), "job")
    again = Recording()
    assert processor.process(numbered(25), again, "job") == {"processed": 25, "failed": 0, "resumed": True}
    assert again.batches == []


def test_only_what_changed_is_processed_again(processor: BatchProcessor) -> None:
    """An edit, a new document, another field; order and batch size do not matter."""
    documents = numbered(25)
    processor.process(documents, Recording(), "job")
    documents[3] = {"id": "doc-3", "text": "edited"}
    documents[4] = {**documents[4], "field": 1}
    again = Recording()
    processor.batch_size = 3
    processor.process([{"id": "new"}, *reversed(documents)], again, "job")
    assert sorted(again.done) == ["doc-3", "doc-4", "new"]


def test_a_bad_document_costs_itself_alone_and_is_tried_again(processor: BatchProcessor, tmp_path: Path) -> None:
    def refuse(batch: list[dict[str, Any]]) -> None:
        if any(document["id"] == "doc-7" for document in batch):
            raise ValueError("secret words of the document")

    assert processor.process(numbered(20), Recording(refuse), "job") == {
        "processed": 19,
        "failed": 1,
        "resumed": False,
    }
    letters = (tmp_path / "millrace/jobs-v1/job/dead_letters.jsonl").read_text()
    assert "doc-7" in letters
    assert "ValueError" in letters
    assert "secret" not in "".join(path.read_text("latin-1") for path in tmp_path.rglob("*") if path.is_file())
    again = Recording()
    assert processor.process(numbered(20), again, "job")["failed"] == 0
    assert again.done == ["doc-7"]
    assert not (tmp_path / "millrace/jobs-v1/job/dead_letters.jsonl").exists()


async def test_an_async_function_runs_on_the_callers_loop(processor: BatchProcessor) -> None:
    done: list[str] = []

    async def send(batch: list[dict[str, Any]]) -> None:
        done.extend(document["id"] for document in batch)

    assert (await processor.aprocess(iter(numbered(25)), send, "job"))["processed"] == 25
    assert sorted(done) == sorted(document["id"] for document in numbered(25))


def test_what_is_transient_is_tried_again(processor: BatchProcessor) -> None:
    failures: Iterator[int] = iter([1])

    def fail_once(_: object) -> None:
        if next(failures, None):
            raise UnavailableError("down", retry_after_seconds=0)

    recording = Recording(fail_once)
    assert processor.process(numbered(5), recording, "job") == {"processed": 5, "failed": 0, "resumed": False}
    assert len(recording.batches) == 2


def test_an_error_that_refuses_everything_keeps_what_is_done(processor: BatchProcessor) -> None:
    def refuse(batch: list[dict[str, Any]]) -> None:
        if batch[0]["id"] == "doc-40":
            raise RefusedError("no more")

    with pytest.raises(RefusedError):
        processor.process(numbered(100), Recording(refuse), "job")
    again = Recording()
    assert processor.process(numbered(100), again, "job") == {"processed": 100, "failed": 0, "resumed": True}
    assert again.done[0] == "doc-40"


def test_of_two_with_one_id_the_later_wins_and_a_rerun_calls_nothing(processor: BatchProcessor) -> None:
    documents = [{"id": "a", "text": "first"}, {"id": "b"}, {"id": "a", "text": "second"}]
    seen: list[Any] = []
    assert processor.process(documents, seen.extend, "job")["processed"] == 3
    assert seen == [{"id": "b"}, {"id": "a", "text": "second"}]
    assert processor.process(documents, seen.extend, "job")["processed"] == 3
    assert len(seen) == 2


@pytest.mark.parametrize("item", [{"text": "no id"}, {"id": ""}, "no mapping", {"id": None}])
def test_what_has_no_id_fails_alone(processor: BatchProcessor, item: Any) -> None:
    assert processor.process([item, {"id": 7}], Recording(), "job") == {"processed": 1, "failed": 1, "resumed": False}


@pytest.mark.parametrize("job_id", ["", "../x", "a b", "x" * 101])
def test_a_job_id_outside_its_pattern_is_refused(processor: BatchProcessor, job_id: str) -> None:
    with pytest.raises(ValueError, match="job_id"):
        processor.process([], Recording(), job_id)


def test_a_job_has_one_writer(processor: BatchProcessor) -> None:
    def call_again(_: object) -> None:
        processor.process(numbered(1), Recording(), "job")

    seen: list[type[Exception]] = []

    def call(batch: list[dict[str, Any]]) -> None:
        try:
            call_again(batch)
        except JobBusyError as error:
            seen.append(type(error))

    processor.process(numbered(3), call, "job")
    assert seen == [JobBusyError]


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    runs=st.lists(
        st.tuples(st.lists(st.integers(0, 12), max_size=20), st.integers(1, 4), st.integers(1, 3), st.integers(0, 8)),
        min_size=1,
        max_size=4,
    )
)
def test_interrupted_again_and_again_each_version_is_processed_last(
    runs: list[tuple[list[int], int, int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever was interrupted where: at the end the newest version of each document was the last to be processed."""
    folder, state = tmp_path_factory.mktemp("job"), dict[str, str]()
    for number, (numbers, batch_size, interval, calls) in enumerate([*runs, (runs[-1][0], 3, 2, 10**6)]):
        version = min(number, len(runs) - 1)
        documents = [{"id": str(i), "text": f"{i} of run {version if i % 2 else 0}"} for i in dict.fromkeys(numbers)]
        left = iter(range(calls))

        def apply(batch: list[dict[str, Any]], left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise RefusedError("interrupted")
            state.update({document["id"]: document["text"] for document in batch})

        processor = BatchProcessor(batch_size, interval, folder)
        try:
            result = processor.process(documents, apply, "job")
        except RefusedError:
            continue
        assert result["processed"] == len(documents)
        assert {document["id"]: state[document["id"]] for document in documents} == {
            document["id"]: document["text"] for document in documents
        }


SCRIPT = """
    import os, signal, sys
    from flows.batch_processor import BatchProcessor

    def record(batch):
        with open(sys.argv[2], "a") as file:
            file.write("".join(document["id"] + "\\n" for document in batch))
        if batch[0]["id"] == sys.argv[3]:
            os.kill(os.getpid(), signal.SIGKILL)

    documents = ({"id": f"doc-{i}"} for i in range(100))
    print(BatchProcessor(10, 2, sys.argv[1]).process(documents, record, "job"))
"""


def test_a_kill_costs_the_batches_since_the_last_checkpoint(tmp_path: Path) -> None:
    def run(killed_at: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(tmp_path / "c"), str(tmp_path / "log"), killed_at]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ, check=False)

    assert run("doc-70").returncode == -signal.SIGKILL
    finished = run("none")
    assert finished.stdout.strip() == "{'processed': 100, 'failed': 0, 'resumed': True}"
    calls = (tmp_path / "log").read_text().split()
    assert set(calls) == {f"doc-{i}" for i in range(100)}
    assert sorted({id_ for id_ in calls if calls.count(id_) > 1}) == sorted(f"doc-{i}" for i in range(60, 80))

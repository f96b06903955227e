"""The report as a person reads it, and how fast a run was over its time."""

from __future__ import annotations

from collections import Counter

import pytest

from flows.artifacts import artifact_key, percent
from flows.report import report_markdown, report_table
from flows.throughput import MOST_INTERVALS, Throughput
from tasks.records import DeadLetter, Reason
from tasks.tally import Report, Tally


def finished(*letters: DeadLetter) -> tuple[Report, Tally]:
    now = [0.0]
    tally = Tally(clock=lambda: now[0])
    tally.upserted = 995
    tally.given_up = list(letters)
    tally.dead_letters = Counter(letter.reason for letter in letters)
    now[0] = 10.0
    return tally.report(job_id="docs", resumed=False, retries=Counter()), tally


def test_intervals_add_up_to_the_documents_of_the_run() -> None:
    """Nothing is lost when points are merged, however long the run is."""
    throughput = Throughput()
    for second in range(1, 1000):
        throughput.sample(float(second), 7 * second)
    intervals = throughput.intervals(1000.0, 7000)
    assert len(intervals) <= MOST_INTERVALS
    starts = [0.0, *(interval.until_seconds for interval in intervals[:-1])]
    done = [(i.until_seconds - start) * i.documents_per_second for i, start in zip(intervals, starts, strict=True)]
    assert sum(done) == pytest.approx(7000)


def test_a_run_shorter_than_a_sample_is_one_interval() -> None:
    """There is always something to show."""
    assert [i.documents_per_second for i in Throughput().intervals(0.5, 100)] == [200]


def test_an_interval_without_documents_is_seen() -> None:
    """A stall is what one looks for."""
    throughput = Throughput()
    throughput.sample(1.0, 100)
    throughput.sample(2.0, 100)
    assert [i.documents_per_second for i in throughput.intervals(3.0, 200)] == [100, 0, 100]


@pytest.mark.parametrize(
    ("done", "total", "shown"), [(0, 0, 100), (0, 10, 0), (1, 3, 33.3), (10, 10, 100), (14, 10, 100)]
)
def test_progress_stays_between_none_and_all(done: int, total: int, shown: float) -> None:
    """Prefect takes 140 per cent without a word."""
    assert percent(done, total) == shown


def test_artifact_keys_are_what_prefect_takes() -> None:
    """Lower case letters, digits and dashes."""
    assert artifact_key("Docs_2026.v1", "report") == "docs-2026-v1-report"


def test_the_report_counts_dead_letters_by_reason() -> None:
    """The reason says whether a replay makes sense."""
    letters = [DeadLetter(f"d{i}", "a.jsonl", i, Reason.EXHAUSTED, "spent") for i in range(4)]
    report, tally = finished(*letters, DeadLetter(None, "a.jsonl", 9, Reason.MALFORMED, "not | JSON"))
    page = report_markdown(report, tally, Throughput().intervals(10.0, 1000))
    assert "| exhausted | 4 |" in page
    assert "| malformed | 1 |" in page
    assert "| not   JSON |" in page
    assert "| 1,000 | 995 | 0 | 0 | 5 |" in page


def test_a_page_with_many_dead_letters_stays_short() -> None:
    """Their own artifact and the job's file hold the rest."""
    report, tally = finished(*(DeadLetter(f"d{i}", "a", i, Reason.REJECTED, "no") for i in range(500)))
    page = report_markdown(report, tally, [])
    assert "and 480 more." in page
    assert len(page) < 4000


def test_a_report_without_dead_letters_has_no_section_for_them() -> None:
    """Nothing to read where nothing happened."""
    assert "Dead letters" not in report_markdown(*finished(), [])


def test_the_terminal_shows_the_same_counts() -> None:
    """One set of rows for both."""
    assert report_table(finished()[0]).row_count > 10

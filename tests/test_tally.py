"""The tally counts each document once and becomes the report."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tasks.records import DeadLetter, EmbedRecord, Reason, Receipt, Segment
from tasks.tally import MOST_SHOWN, Tally

COUNT = st.integers(0, 5)


def letters(count: int, reason: Reason = Reason.INVALID) -> list[DeadLetter]:
    return [DeadLetter(str(i), "s.jsonl", i, reason, "why") for i in range(count)]


def segment(*, unchanged: int = 0, duplicates: int = 0, dead: int = 0) -> Segment:
    return Segment(0, 9, [], range(0), letters(dead), unchanged=unchanged, duplicates=duplicates, batches=[[1], [2]])


def embedded(dead: int = 0) -> EmbedRecord:
    return EmbedRecord("job", 0, 0, 1, 3, letters(dead), embedding_requests=3, model_tokens=70)


def receipt(upserted: int = 0, dead: int = 0) -> Receipt:
    return Receipt(0, bytes(16 * upserted), letters(dead, Reason.REJECTED), upsert_requests=2, bytes_sent=100)


def test_no_time_at_all_is_no_division_by_zero() -> None:
    """A clock may stand still."""
    report = Tally(clock=lambda: 1.0).report(job_id="job", resumed=False, retries=Counter())
    assert (report.seconds, report.documents_per_second, report.documents) == (0, 0, 0)


def test_only_the_first_dead_letters_are_shown() -> None:
    """All are counted."""
    tally = Tally()
    for _ in range(3):
        tally.receipted(receipt(dead=MOST_SHOWN - 1), None)
    assert len(tally.first_dead_letters) == MOST_SHOWN
    assert tally.dead_letters == {Reason.REJECTED: 3 * (MOST_SHOWN - 1)}


def test_texts_that_were_cut_are_counted_also_from_a_checkpoint() -> None:
    """What is stored lacks its end, whenever it was embedded."""
    tally = Tally()
    for is_cached in (False, True):
        record = EmbedRecord("job", 0, 0, 1, 3, [], embedding_requests=3, model_tokens=0, truncated=2)
        tally.embedded(record, from_checkpoint=is_cached)
    assert tally.report(job_id="job", resumed=False, retries=Counter()).truncated == 4


def test_an_answer_from_a_checkpoint_cost_nothing_now() -> None:
    """Its dead letters count all the same."""
    tally = Tally()
    tally.embedded(embedded(dead=2), from_checkpoint=True)
    assert (tally.embedding_requests, tally.model_tokens, tally.dead_letter_count) == (0, 0, 2)
    tally.embedded(embedded(dead=2), from_checkpoint=False)
    assert (tally.embedding_requests, tally.model_tokens, tally.dead_letter_count) == (3, 70, 4)


@given(st.lists(st.tuples(COUNT, COUNT, COUNT, COUNT, COUNT, COUNT), max_size=4))
def test_the_counts_add_up(segments: list[tuple[int, ...]]) -> None:
    """Law 1, whatever the segments hold."""
    tally = Tally()
    for unchanged, duplicates, dead, unembedded, upserted, unstored in segments:
        tally.batched(segment(unchanged=unchanged, duplicates=duplicates, dead=dead))
        tally.embedded(embedded(unembedded), from_checkpoint=False)
        tally.receipted(receipt(upserted, unstored), None)
    report = tally.report(job_id="job", resumed=True, retries=Counter())
    assert report.documents == sum(map(sum, segments))
    assert report.documents == report.upserted + report.unchanged + report.duplicates + report.dead_letters
    assert (report.upserted, report.batches) == (sum(s[4] for s in segments), 2 * len(segments))


def test_the_report_is_plain_json() -> None:
    """Under the names of the design."""
    times = iter([100.0, 104.0])
    tally = Tally(clock=lambda: next(times))
    tally.batched(segment(unchanged=10))
    tally.stage_seconds["embed"] = 1.23456
    report = tally.report(
        job_id="job", resumed=True, retries=Counter({"upsert.unavailable": 1, "embed.rate_limited": 2})
    )
    values = report.to_dict()
    assert values["job_id"] == "job"
    assert (values["seconds"], values["documents_per_second"]) == (4.0, 2.5)
    assert values["stage_seconds"] == {"embed": 1.235}
    assert list(values["retries"].items()) == [("embed.rate_limited", 2), ("upsert.unavailable", 1)]
    assert values["peak_rss_bytes"] > 1_000_000

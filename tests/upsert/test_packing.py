"""Packing: every row once, in order, in the fewest requests that keep both limits."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.upsert.packing import calculate_batch_size, pack

SIZES = st.lists(st.integers(0, 120), max_size=60)
MAX_BYTES = st.none() | st.integers(1, 200)
ENVELOPES = st.integers(0, 40)
MAX_RECORDS = st.integers(1, 12)


@pytest.mark.parametrize(("dimension", "metadata", "records"), [(768, 500, 319), (1536, 2000, 147), (3072, 1000, 85)])
def test_the_estimate_is_the_lessons_code_not_its_printed_output(dimension: int, metadata: int, records: int) -> None:
    assert calculate_batch_size(dimension, metadata) == records


def test_the_estimate_never_exceeds_a_thousand_records() -> None:
    assert calculate_batch_size(8, 0) == 1000


@pytest.mark.parametrize("arguments", [(0,), (8, -1), (8, 0, 0.0), (8, 0, 2.0, 0.0), (8, 0, 2.0, 1.5)])
def test_the_estimate_refuses_what_it_cannot_count_with(arguments: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="embedding_dim from 1"):
        calculate_batch_size(*arguments)  # type: ignore[arg-type]


@given(SIZES, MAX_BYTES, ENVELOPES, MAX_RECORDS)
def test_every_row_is_in_one_request_or_too_large_in_order(
    sizes: list[int], max_bytes: int | None, envelope: int, max_records: int
) -> None:
    requests, too_large = pack(sizes, max_bytes=max_bytes, envelope_bytes=envelope, max_records=max_records)
    packed = [row for rows in requests for row in rows]
    assert packed == sorted(packed)
    assert too_large == sorted(too_large)
    assert sorted(packed + too_large) == list(range(len(sizes)))
    assert all(requests)


@given(SIZES, MAX_BYTES, ENVELOPES, MAX_RECORDS)
def test_no_request_is_over_a_limit_and_only_hopeless_rows_are_left_out(
    sizes: list[int], max_bytes: int | None, envelope: int, max_records: int
) -> None:
    requests, too_large = pack(sizes, max_bytes=max_bytes, envelope_bytes=envelope, max_records=max_records)
    for rows in requests:
        assert len(rows) <= max_records
        assert max_bytes is None or envelope + sum(sizes[row] for row in rows) <= max_bytes
    assert all(max_bytes is not None and envelope + sizes[row] > max_bytes for row in too_large)


@given(SIZES, MAX_BYTES, ENVELOPES, MAX_RECORDS)
def test_a_request_ends_only_where_the_next_row_would_not_fit(
    sizes: list[int], max_bytes: int | None, envelope: int, max_records: int
) -> None:
    """Which makes their number the least that consecutive rows allow."""
    requests, _ = pack(sizes, max_bytes=max_bytes, envelope_bytes=envelope, max_records=max_records)
    for rows, following in itertools.pairwise(requests):
        if rows.stop != following.start:
            continue  # a row that is too large stands between them
        grown = envelope + sum(sizes[row] for row in (*rows, rows.stop))
        assert len(rows) == max_records or (max_bytes is not None and grown > max_bytes)


def test_no_records_make_no_request() -> None:
    assert pack([], max_bytes=10, envelope_bytes=5, max_records=3) == ([], [])


def test_a_limit_of_no_records_is_refused() -> None:
    with pytest.raises(ValueError, match="max_records"):
        pack([1], max_bytes=10, envelope_bytes=5, max_records=0)

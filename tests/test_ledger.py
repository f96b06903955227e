"""The ledger against a dictionary."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tasks.fingerprints import Entries
from tasks.ledger import Ledger, from_bytes

ENTRY = st.tuples(st.integers(0, 5) | st.sampled_from([2**63, 2**64 - 1]), st.integers(0, 3))
CHAPTERS = st.lists(st.lists(ENTRY, max_size=6), max_size=5)


def entries(pairs: list[tuple[int, int]]) -> Entries:
    """Pairs of an id's hash and a fingerprint, shape (pairs, 2)."""
    return np.array(pairs, np.uint64).reshape(-1, 2)


def model(chapters: list[list[tuple[int, int]]]) -> dict[int, int]:
    """What the ledger must know."""
    return {id_: fingerprint for chapter in chapters for id_, fingerprint in chapter}


def test_an_empty_ledger_holds_nothing() -> None:
    """However it came to be empty."""
    for ledger in (Ledger(), Ledger.of([]), Ledger.of([entries([])]), Ledger.of([entries([]), entries([])])):
        assert len(ledger) == 0
        assert ledger.holds(entries([(1, 1)])).tolist() == [False]
        assert ledger.to_bytes() == b""
        assert from_bytes(ledger.to_bytes()).shape == (0, 2)


def test_an_id_with_another_fingerprint_is_not_held() -> None:
    """Unchanged is id and fingerprint together."""
    ledger = Ledger.of([entries([(1, 1), (2, 2)])])
    assert ledger.holds(entries([(1, 2), (2, 1), (3, 3), (1, 1)])).tolist() == [False, False, False, True]


@given(CHAPTERS)
def test_the_newest_entry_of_an_id_wins(chapters: list[list[tuple[int, int]]]) -> None:
    """Within a chapter and over all of them."""
    ledger = Ledger.of([entries(chapter) for chapter in chapters])
    assert dict(from_bytes(ledger.to_bytes()).tolist()) == model(chapters)
    assert len(ledger) == len(model(chapters))


@given(CHAPTERS, st.lists(ENTRY, max_size=8))
def test_what_is_held_is_what_the_model_holds(
    chapters: list[list[tuple[int, int]]], asked: list[tuple[int, int]]
) -> None:
    """For a segment at once, none asked for included."""
    ledger = Ledger.of([entries(chapter) for chapter in chapters])
    known = model(chapters)
    assert ledger.holds(entries(asked)).tolist() == [known.get(id_) == fingerprint for id_, fingerprint in asked]


@given(CHAPTERS)
def test_bytes_make_the_same_ledger(chapters: list[list[tuple[int, int]]]) -> None:
    """16 bytes a document."""
    data = Ledger.of([entries(chapter) for chapter in chapters]).to_bytes()
    assert len(data) == 16 * len(model(chapters))
    assert Ledger(from_bytes(data)).to_bytes() == data

"""The scan of ids against a dictionary."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tasks.load.stage import scan_ids

CHUNKS = st.lists(
    st.lists(st.none() | st.sampled_from(["a", "b", "c", "\ud800", ""]) | st.text(max_size=2), max_size=6), max_size=6
)


def superseded(ids: list[str | None]) -> list[int]:
    """Places of ids that come again later."""
    last = {id_: place for place, id_ in enumerate(ids)}
    return [place for place, id_ in enumerate(ids) if id_ is not None and last[id_] != place]


def test_an_empty_source_has_no_items() -> None:
    """Nothing, or chunks of nothing."""
    cases: list[list[list[str | None]]] = [[], [[]], [[], []]]
    for chunks in cases:
        scan = scan_ids(chunks)
        assert (scan.items, scan.superseded.tolist()) == (0, [])


def test_items_without_an_id_never_supersede_each_other() -> None:
    """Each is a dead letter of its own."""
    scan = scan_ids([[None, None], [None]])
    assert (scan.items, scan.superseded.tolist()) == (3, [])


@given(CHUNKS)
def test_of_an_id_only_the_last_place_stands(chunks: list[list[str | None]]) -> None:
    """Wherever the chunks end; places are sorted and none comes twice."""
    ids = [id_ for chunk in chunks for id_ in chunk]
    scan = scan_ids(chunks)
    assert scan.items == len(ids)
    assert scan.superseded.tolist() == superseded(ids)

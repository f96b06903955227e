"""What changes a key or a fingerprint, and what does not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.fingerprints import Fingerprints, framed, hash_ids
from tasks.records import Document

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def fingerprints(*, embedder: str = "e", store: str = "s", keep_text: bool = True) -> Fingerprints:
    return Fingerprints(embedder=embedder, store=store, keep_text=keep_text)


def entry(document: Document, under: Fingerprints | None = None) -> tuple[int, int]:
    """The ledger entry of one document."""
    under = under or fingerprints()
    id_hash, fingerprint = under.entries([document], under.vector_keys([document]))[0].tolist()
    return id_hash, fingerprint


def vector_key(document: Document, under: Fingerprints | None = None) -> bytes:
    return (under or fingerprints()).vector_keys([document])[0]


BASE = Document("a", "text", {"x": 1, "y": {"p": [1], "q": None}})


def shuffled(value: object) -> object:
    """The same JSON with the keys of every object the other way round."""
    if isinstance(value, dict):
        return {key: shuffled(value[key]) for key in reversed(value)}
    return [shuffled(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("text", ["\ud800", "fine \udfff end"])
def test_a_lone_surrogate_in_a_text_is_an_error(text: str) -> None:
    """The caller makes it a dead letter."""
    with pytest.raises(UnicodeEncodeError):
        vector_key(Document("a", text, {}))


@pytest.mark.parametrize("metadata", [{"x": "\ud800"}, {"\ud800": 1}, {"x": [{"y": "\udc00"}]}])
def test_a_lone_surrogate_in_metadata_is_an_error(metadata: dict[str, object]) -> None:
    """Wherever it stands."""
    with pytest.raises(UnicodeEncodeError):
        entry(Document("a", "text", metadata))


def test_metadata_that_is_not_json_is_a_type_error() -> None:
    """A key refuses to guess."""
    with pytest.raises(TypeError):
        entry(Document("a", "text", {"x": object()}))


def test_as_many_vector_keys_as_documents_are_needed() -> None:
    """A missing one must fail and not shift the others."""
    with pytest.raises(ValueError, match="zip"):
        fingerprints().entries([BASE, BASE], fingerprints().vector_keys([BASE]))


@given(st.lists(st.text(max_size=4), max_size=4), st.lists(st.text(max_size=4), max_size=4))
def test_only_equal_parts_have_equal_frames(one: list[str], other: list[str]) -> None:
    """Where a part ends is part of what is hashed."""
    assert (framed(*one) == framed(*other)) == (one == other)


@pytest.mark.parametrize(("one", "other"), [(["ab", "c"], ["a", "bc"]), (["", "a"], ["a", ""]), (["a"], ["a", ""])])
def test_parts_do_not_run_together(one: list[str], other: list[str]) -> None:
    """The pairs that a plain concatenation confuses."""
    assert framed(*one) != framed(*other)


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=5))
def test_the_order_of_metadata_keys_does_not_matter(metadata: dict[str, object]) -> None:
    """At any depth."""
    other = {key: shuffled(metadata[key]) for key in reversed(metadata)}
    assert entry(Document("a", "text", metadata)) == entry(Document("a", "text", other))


@pytest.mark.parametrize(
    "other",
    [
        Document("a", "text ", BASE.metadata),
        Document("a", "text", {**BASE.metadata, "x": 2}),
        Document("a", "text", {**BASE.metadata, "x": 1.0}),
        Document("a", "text", {**BASE.metadata, "x": "1"}),
        Document("a", "text", {**BASE.metadata, "x": True}),
        Document("a", "text", {**BASE.metadata, "z": None}),
        Document("a", "text", {}),
    ],
)
def test_text_and_metadata_change_the_fingerprint(other: Document) -> None:
    """Of the same id; also where the value only changes its type."""
    assert entry(other)[0] == entry(BASE)[0]
    assert entry(other)[1] != entry(BASE)[1]


@pytest.mark.parametrize(
    "other", [fingerprints(embedder="e2"), fingerprints(store="s2"), fingerprints(keep_text=False)]
)
def test_whatever_shapes_the_record_changes_the_fingerprint(other: Fingerprints) -> None:
    """Embedder, store, text kept or not."""
    assert entry(BASE, other)[1] != entry(BASE)[1]


def test_where_it_was_read_does_not_change_the_fingerprint() -> None:
    """A document may move in its source, or to another file."""
    assert entry(Document("a", "text", BASE.metadata, "elsewhere.jsonl", 7)) == entry(BASE)


def test_the_id_is_not_in_the_fingerprint_but_beside_it() -> None:
    """The entry has both."""
    other = entry(Document("b", "text", BASE.metadata))
    assert other[0] != entry(BASE)[0]
    assert other[1] == entry(BASE)[1]


def test_a_vector_key_depends_on_embedder_and_text_alone() -> None:
    """So a second store, an edit of metadata or another id is filled from the same vector."""
    key = vector_key(BASE)
    assert key == vector_key(Document("b", "text", {}), fingerprints(store="s2", keep_text=False))
    assert key != vector_key(Document("a", "text ", {}))
    assert key != vector_key(BASE, fingerprints(embedder="e2"))
    assert len(key) == 16


def test_the_hashes_stay_what_they_are() -> None:
    """Another value for the same input makes every document of every job changed: raise VERSION and know it."""
    assert vector_key(BASE).hex() == "3e5a991c77590a75ba8776048a6e7bf3"
    assert entry(BASE) == (9189440641721877287, 5277056493682960406)


@given(st.lists(st.text(max_size=5), max_size=10))
def test_ids_have_equal_hashes_only_when_they_are_equal(ids: list[str]) -> None:
    """16 bytes each, in order, for any number of them."""
    rows = [row.tobytes() for row in hash_ids(ids)]
    assert [len(row) for row in rows] == [16] * len(ids)
    assert [[a == b for b in rows] for a in rows] == [[a == b for b in ids] for a in ids]


def test_an_id_may_hold_a_lone_surrogate() -> None:
    """It is hashed before anybody could refuse it."""
    assert hash_ids(["\ud800", "\ud801"]).shape == (2, 2)

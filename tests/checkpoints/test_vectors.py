"""Vector parts: whole or a miss, found again by each text's own key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.checkpoints.keys import vectors_key
from tasks.checkpoints.vectors import VectorParts, decode_part, encode_part
from tasks.records import EmbedRecord, Vectors
from tests.checkpoints.blobs import MemoryBlobs


def key_of(number: int) -> bytes:
    return number.to_bytes(16, "big")


def rows(texts: int, dimension: int, seed: int = 0) -> Vectors:
    return np.random.default_rng(seed).standard_normal((texts, dimension)).astype(np.float32)


def parts(blobs: MemoryBlobs, warn: Callable[[str], Any] = pytest.fail, job: str = "job") -> VectorParts:
    return VectorParts(blobs, job, 0, warn)


PART = encode_part([key_of(1), key_of(2)], rows(2, 3))


@pytest.mark.parametrize("part", [PART, encode_part([], rows(0, 3)), encode_part([key_of(1)], rows(1, 0))])
def test_a_damaged_byte_is_an_error(part: bytes) -> None:
    """Any byte of it, the header's too, changed in one bit or in all."""
    for place in range(len(part)):
        for change in (0x01, 0x80, 0xFF):
            damaged = bytearray(part)
            damaged[place] ^= change
            with pytest.raises(ValueError, match=r"part|digest"):
                decode_part(bytes(damaged))


def test_a_cut_or_a_longer_part_is_an_error() -> None:
    """Down to nothing at all."""
    for length in range(len(PART)):
        with pytest.raises(ValueError, match=r"cut short|whole"):
            decode_part(PART[:length])
    with pytest.raises(ValueError, match="whole"):
        decode_part(PART + b"x")


def test_as_many_keys_as_vectors() -> None:
    """A missing vector must fail and not shift the others."""
    with pytest.raises(ValueError, match="1 keys for 2 vectors"):
        encode_part([key_of(1)], rows(2, 3))


@given(st.integers(0, 6), st.integers(0, 6), st.integers(0, 3))
def test_a_part_comes_back_as_it_was(texts: int, dimension: int, seed: int) -> None:
    """Any shape, none of a text included."""
    keys, vectors = [key_of(i + 2**127) for i in range(texts)], rows(texts, dimension, seed)
    found_keys, found = decode_part(encode_part(keys, vectors))
    assert found_keys == keys
    assert np.array_equal(found, vectors)
    assert found.dtype == np.float32
    assert found.shape == (texts, dimension)


def test_a_part_does_not_depend_on_how_the_vectors_lie_in_memory() -> None:
    """Other strides and other numbers are written as float32 rows."""
    wide: Any = np.asfortranarray(rows(2, 3).astype(np.float64))
    assert encode_part([key_of(1), key_of(2)], wide) == PART


async def test_a_damaged_part_is_a_miss_with_one_warning() -> None:
    """However often its texts are asked for; the parts after it are found."""
    blobs, warnings = MemoryBlobs(), list[str]()
    found = parts(blobs, warnings.append)
    for part in range(3):
        await found.write(5, part, [key_of(part)], rows(1, 3, part))
    blobs.content[vectors_key("job", 0, 5, 1)] = PART[:-1]
    assert await found.remember(5)
    known, vectors = await found.recall([key_of(0), key_of(1), key_of(2), key_of(1)])
    assert known.tolist() == [True, False, True, False]
    assert np.array_equal(vectors[[0, 2]], np.concatenate([rows(1, 3, 0), rows(1, 3, 2)]))  # type: ignore[index]
    assert len(warnings) == 1
    assert vectors_key("job", 0, 5, 1) in warnings[0]


async def test_a_damaged_part_is_dropped_with_the_others() -> None:
    """It is nobody's any more."""
    blobs = MemoryBlobs()
    found = parts(blobs, lambda _: None)
    await found.write(5, 0, [key_of(0)], rows(1, 3))
    blobs.content[vectors_key("job", 0, 5, 1)] = b"garbage"
    await found.remember(5)
    await found.drop([5])
    assert blobs.content == {}


async def test_nothing_is_recalled_where_nothing_was_left() -> None:
    """No vectors, and no dimension to make zeros of."""
    found = parts(MemoryBlobs())
    assert not await found.remember(0)
    known, vectors = await found.recall([key_of(1), key_of(2)])
    assert (known.tolist(), vectors) == ([False, False], None)
    known, vectors = await found.recall([])
    assert (known.tolist(), vectors) == ([], None)


async def test_a_part_that_went_away_is_a_miss() -> None:
    """Another process may have dropped it."""
    blobs = MemoryBlobs()
    found = parts(blobs)
    await found.write(0, 0, [key_of(1)], rows(1, 3))
    await found.remember(0)
    blobs.content.clear()
    known, _ = await found.recall([key_of(1)])
    assert known.tolist() == [False]


async def test_a_vector_of_another_dimension_is_a_miss() -> None:
    """Rows of one segment have one shape; the first one found gives it."""
    found = parts(MemoryBlobs())
    await found.write(0, 0, [key_of(1)], rows(1, 3))
    await found.write(0, 1, [key_of(2)], rows(1, 4))
    await found.remember(0)
    known, vectors = await found.recall([key_of(1), key_of(2)])
    assert known.tolist() == [True, False]
    assert vectors is not None
    assert vectors.shape == (2, 3)


async def test_vectors_are_recalled_over_parts_and_sequences() -> None:
    """In the order asked, more parts than are kept open, each key's own row."""
    found = parts(MemoryBlobs())
    everything = rows(60, 3)
    for number in range(0, 60, 3):
        keys = [key_of(number + i) for i in range(3)]
        await found.write(number // 30, number % 30 // 3, keys, everything[number : number + 3])
    assert await found.remember(0)
    assert await found.remember(1)
    assert found.sequences == {0: 10, 1: 10}
    asked = np.random.default_rng(1).permutation(60).tolist()
    known, vectors = await found.recall([key_of(i) for i in [*asked, 99]])
    assert known.tolist() == [True] * 60 + [False]
    assert np.array_equal(vectors[:60], everything[asked])  # type: ignore[index]


async def test_a_record_finds_its_parts_in_any_job() -> None:
    """A second store is filled for free; a part that is gone or damaged is None."""
    blobs, warnings = MemoryBlobs(), list[str]()
    await parts(blobs, job="other").write(4, 0, [key_of(1)], rows(1, 3))
    blobs.content[vectors_key("other", 0, 4, 1)] = b"garbage"
    record = EmbedRecord("other", 0, 4, 3, 1, [], 1, 1)
    found = parts(blobs, warnings.append)
    answer = await found.read_from(record, 0)
    assert answer is not None
    assert np.array_equal(answer[1], rows(1, 3))
    assert [await found.read_from(record, part) for part in (1, 2)] == [None, None]
    assert len(warnings) == 1

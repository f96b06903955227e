"""Feature hashing: what is its own."""

from __future__ import annotations

import numpy as np

from tasks.embed.hashing import HashingEmbedder
from tasks.provider_settings import HashingSettings


async def test_a_text_without_features_gets_the_constant_vector() -> None:
    """Empty, stop words only, or punctuation: all components equal, length 1."""
    rows = (await HashingEmbedder(HashingSettings(dimension=16)).embed(["", "the and of", "!!"])).vectors
    assert np.array_equal(rows, np.full((3, 16), 0.25, dtype=np.float32))


async def test_every_row_has_length_one() -> None:
    """So a dot product is the cosine."""
    rows = (await HashingEmbedder(HashingSettings()).embed(["mill", "mill stone mill", "", "a"])).vectors
    assert np.allclose(np.linalg.norm(rows, axis=1), 1)


async def test_shared_words_make_texts_near() -> None:
    """Lexical: a synonym counts for nothing."""
    rows = (await HashingEmbedder(HashingSettings()).embed(["stone mill", "stone mill wheel", "quern"])).vectors
    assert rows[0] @ rows[1] > 0.5
    assert abs(rows[0] @ rows[2]) < 0.2


async def test_the_vectors_stay_what_they_are() -> None:
    """Another vector for the same text needs another version in the identity."""
    embedder = HashingEmbedder(HashingSettings(dimension=8))
    rows = (await embedder.embed(["Water drives the wheel; the wheel turns the stone."])).vectors
    assert embedder.identity == "hashing:8:v1"
    assert np.allclose(rows, [[0, -0.6030, 0, 0.6030, 0, 0.3015, 0.3015, -0.3015]], atol=1e-4)


def test_long_vectors_take_smaller_requests() -> None:
    """An answer is 64 MiB at most."""
    assert HashingEmbedder(HashingSettings()).limits.max_inputs == 2048
    assert HashingEmbedder(HashingSettings(dimension=65_536)).limits.max_inputs == 256

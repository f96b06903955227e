"""A unit vector of its own for every text, cheap enough for benchmarks."""

from __future__ import annotations

import base64
import functools
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import orjson
from numpy.typing import NDArray

BANK_ROWS = 1024


@functools.cache
def _bank(dimension: int) -> NDArray[np.float32]:
    return np.random.default_rng(dimension).standard_normal((BANK_ROWS, dimension), dtype=np.float32)


def text_digest(text: str) -> bytes:
    """The 16 bytes that stand for a text in `OpenAIEmulator.paid`."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def vectors_of(digests: Sequence[bytes], dimension: int) -> NDArray[np.float32]:
    """The unit vectors of the texts with these digests, shape (digests, dimension)."""
    # Three random rows, mixed by three weights: 78 bits of the digest, for a hundredth of the cost of a generator each.
    words = np.frombuffer(b"".join(digests), dtype="<u2").reshape(len(digests), 8)
    weights = words[:, 3:6].astype(np.float32) / np.float32(65536) + np.float32(0.5)
    bank = _bank(dimension)
    mixed: NDArray[np.float32] = bank[words[:, 0] % BANK_ROWS] * weights[:, :1]
    mixed += bank[words[:, 1] % BANK_ROWS] * weights[:, 1:2]
    mixed += bank[words[:, 2] % BANK_ROWS] * weights[:, 2:3]
    mixed /= np.sqrt(np.einsum("ij,ij->i", mixed, mixed))[:, None]
    return mixed


def vectors_for(texts: Sequence[str], dimension: int) -> NDArray[np.float32]:
    """The unit vectors the emulator answers for the texts, shape (texts, dimension)."""
    return vectors_of([text_digest(text) for text in texts], dimension)


def vector_for(text: str, dimension: int) -> NDArray[np.float32]:
    """The unit vector the emulator answers for a text, shape (dimension,); distinct texts have distinct vectors."""
    vector: NDArray[np.float32] = vectors_for([text], dimension)[0]
    return vector


def encode_vector(vector: NDArray[np.float32], *, is_base64: bool) -> bytes:
    """A vector as JSON: a string of base64, or a list of numbers."""
    if is_base64:
        return b'"%s"' % base64.b64encode(vector.data)
    return orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY)

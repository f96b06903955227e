"""What the vectors of every answer must be, whoever sent them."""

from __future__ import annotations

import numpy as np

from tasks.errors import RefusedError, UnavailableError
from tasks.records import Vectors


def checked(vectors: Vectors, dimension: int | None) -> Vectors:
    """The vectors of a whole answer, shape (texts, dimension), after a look at them.

    Raises:
        UnavailableError: a number that is not finite, or a single vector of another length than the known one.
        RefusedError: all of several vectors have another length than the known one.
    """
    if not np.isfinite(vectors).all():
        raise UnavailableError("the answer holds numbers that are not finite")
    if dimension not in {None, vectors.shape[1]}:
        message = f"the answer has {vectors.shape[1]} dimensions, not {dimension}: set the embedder's dimensions"
        raise RefusedError(message) if len(vectors) > 1 else UnavailableError(message)
    return vectors

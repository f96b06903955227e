"""How many records go into one upsert request: an estimate beforehand, an exact packing at the time."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.profiles import PINECONE

_VECTOR_OVERHEAD = 1.5  # the lesson's allowance for a float32's wire form over its 4 bytes
_ID_BYTES = 50
_STRUCTURE_BYTES = 100


def calculate_batch_size(
    embedding_dim: int,
    avg_metadata_bytes: int = 500,
    max_request_mb: float = 2.0,
    safety_margin: float = 0.8,
) -> int:
    """Estimate how many records of ``embedding_dim`` dimensions fit one upsert request, at most 1,000.

    The lesson that this project grew from prints 397, 181 and 131 for (768, 500), (1536, 2000) and (3072, 1000);
    its own code, which is this formula, gives 319, 147 and 85. It is an estimate for planning only: JSON takes 9 to 20
    bytes a float32, so at 1,536 dimensions and 2,000 bytes of metadata 93 records fill 2,000,000 bytes. What is sent is
    packed by its real bytes (`pack`).

    Raises:
        ValueError: a dimension below 1, or another argument that leaves no room to count with.
    """
    if embedding_dim < 1 or avg_metadata_bytes < 0 or max_request_mb <= 0 or not 0 < safety_margin <= 1:
        raise ValueError(
            "embedding_dim from 1, avg_metadata_bytes from 0, max_request_mb above 0, safety_margin in (0, 1]"
        )
    max_bytes = max_request_mb * 1024 * 1024 * safety_margin
    record_bytes = embedding_dim * 4 * _VECTOR_OVERHEAD + avg_metadata_bytes + _ID_BYTES + _STRUCTURE_BYTES
    return min(int(max_bytes / record_bytes), PINECONE.max_records)


def pack(
    sizes: Sequence[int],
    *,
    max_bytes: int | None,
    envelope_bytes: int,
    max_records: int,
) -> tuple[list[range], list[int]]:
    """Split consecutive records into the fewest requests that keep both limits.

    ``sizes`` are the bytes that each record adds to a request, its separator included; ``envelope_bytes`` is what the
    request costs before its first record and counts towards ``max_bytes`` (None: no limit on bytes).

    Returns:
        The rows of each request in order, and the rows that are over ``max_bytes`` even alone. Every row is in exactly
        one of them; a request's rows are consecutive, so a row that is too large ends the request before it.

    Raises:
        ValueError: ``max_records`` below 1.
    """
    if max_records < 1:
        raise ValueError("max_records must be at least 1")
    room = None if max_bytes is None else max_bytes - envelope_bytes
    requests: list[range] = []
    too_large: list[int] = []
    start, filled = 0, 0
    for row, size in enumerate(sizes):
        if room is not None and size > room:
            _close(requests, start, row)
            too_large.append(row)
            start, filled = row + 1, 0
            continue
        if row - start == max_records or (room is not None and filled + size > room):
            _close(requests, start, row)
            start, filled = row, 0
        filled += size
    _close(requests, start, len(sizes))
    return requests, too_large


def _close(requests: list[range], start: int, stop: int) -> None:
    if start < stop:
        requests.append(range(start, stop))

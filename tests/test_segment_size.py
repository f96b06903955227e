"""How many documents a segment holds: what is asked for, unless their vectors were too large."""

from __future__ import annotations

import pytest

from flows.shard import documents_in_flight, segment_size, segments_embedding
from tasks.load.source import SEGMENT_BYTES
from tasks.settings import IngestSettings


@pytest.mark.parametrize(
    ("batch_size", "checkpoint_interval", "dimension", "documents"),
    [
        (100, 10, 3072, 1000),
        (100, 10, None, 1000),
        (2048, 10, 3072, 2048),
        (100, 1000, 1536, 5400),
        (2048, 10, 20_000, 419),
        (1, 1, 20_000_000, 1),
    ],
)
def test_vectors_of_a_segment_fit_in_its_bytes(
    batch_size: int, checkpoint_interval: int, dimension: int | None, documents: int
) -> None:
    """In whole batches, so that no request is smaller than it need be."""
    settings = IngestSettings(batch_size=batch_size, checkpoint_interval=checkpoint_interval)
    size = segment_size(settings, dimension)
    assert size.documents == documents
    assert documents == 1 or documents * size.vector_bytes <= SEGMENT_BYTES


def test_shorter_segments_embed_as_many_requests_at_once() -> None:
    """More of them are under way."""
    settings = IngestSettings(batch_size=2048, checkpoint_interval=10, concurrency=10)
    assert segments_embedding(settings, 20_480) == 2
    assert segments_embedding(settings, 2048) == 11
    assert segments_embedding(settings, 419) == 11
    assert documents_in_flight(settings, 3072) == 19 * 2048

"""Every embedder against the one contract. A new embedder is one line of `BEDS`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.embed.beds import Bed, cohere_bed, hashing_bed, openai_bed, sentence_transformers_bed
from tests.embed.contract import EmbedderContract

BEDS = [
    pytest.param(hashing_bed, id="hashing"),
    pytest.param(openai_bed, id="openai"),
    pytest.param(cohere_bed, id="cohere"),
    pytest.param(sentence_transformers_bed, id="sentence-transformers", marks=pytest.mark.local),
]


class TestEveryEmbedder(EmbedderContract):
    @pytest.fixture(params=BEDS)
    def bed(self, request: pytest.FixtureRequest) -> Iterator[Bed]:
        with request.param(request) as bed:
            yield bed

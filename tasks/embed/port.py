"""The port that every embedder fulfils. Batching, limits, retries and checkpoints stay outside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tasks.records import Embedding, Vectors

TINY_TEXT = "How many dimensions?"
"""What preflight asks every embedder once before a run: four model tokens."""


@dataclass(frozen=True, slots=True)
class EmbedLimits:
    """What one embedding request may hold, and how many texts a minute may send. None is no limit."""

    max_inputs: int
    max_tokens_per_input: int | None = None
    max_tokens_per_request: int | None = None
    inputs_per_minute: int | None = None


class Embedder(Protocol):
    """Turns texts into vectors."""

    identity: str
    """All that changes a vector (provider, model, dimensions, input type), as one printable string."""
    dimension: int | None
    """Length of a vector; None until the first answer when the model is not a known one."""
    limits: EmbedLimits

    async def open(self) -> None:
        """Find out whether it can embed, before anything is paid for; identity and dimension hold from here on.

        Raises:
            UsageError: a key that is refused, a model that is not there; one line that says what to do.
            TransientError: its server cannot be reached.
        """
        ...

    async def embed(self, texts: Sequence[str]) -> Embedding:
        """Embed documents' texts, one row a text, in order.

        Raises:
            TransientError: another attempt may succeed; also for an answer that is not whole.
            RequestRejectedError: one of the texts is refused; halving finds it.
            RefusedError: every request will fail.
        """
        ...

    async def embed_query(self, text: str) -> Vectors:
        """Embed a search query, shape (dimension,). Raises what `embed` raises."""
        ...

    def model_tokens(self, text: str) -> int:
        """Model tokens of a text, offline: exact, or an upper bound."""
        ...

    async def aclose(self) -> None:
        """Close connections."""
        ...

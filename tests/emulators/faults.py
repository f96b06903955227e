"""What can go wrong on purpose: which fault the next request meets, decided by a seed."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

Kind = Literal[
    "none",
    "status_500",
    "status_503",
    "status_429",
    "reset_before",
    "reset_after",
    "truncate",
    "shuffle",
    "drop_item",
    "duplicate_item",
    "nan",
    "wrong_dimension",
]

KINDS: tuple[Kind, ...] = (
    "status_500",
    "status_503",
    "status_429",
    "reset_before",
    "reset_after",
    "truncate",
    "shuffle",
    "drop_item",
    "duplicate_item",
    "nan",
    "wrong_dimension",
)
"""Every fault, in the order in which one random number chooses among them."""

STATUS: dict[Kind, int] = {"status_500": 500, "status_503": 503, "status_429": 429}


@dataclass(frozen=True)
class Faults:
    """The probability of each fault, 0 to 1, summing to 1 at most.

    ``script`` comes first: its kinds meet the first requests in order, ``none`` being no fault. ``only`` confines
    faults (not ``poison``) to paths that end in one of its strings. From request ``fail_after`` on (counted from 0,
    among those ``only`` lets through, since these faults were set) every answer is 503. A request that contains a text
    (OpenAI) or a record id (Pinecone) that contains a ``poison`` string is refused with 400, whole.

    The kinds from ``shuffle`` on are the embedders'; Pinecone answers as if there was no fault, and Cohere, whose
    answers have no index, to ``shuffle`` and ``duplicate_item``.
    """

    seed: int = 0
    status_500: float = 0.0
    status_503: float = 0.0
    status_429: float = 0.0
    reset_before: float = 0.0  # connection reset, nothing done
    reset_after: float = 0.0  # the work is done, then the connection is reset without an answer
    truncate: float = 0.0  # the work is done, half of the answer is sent, then the connection ends
    shuffle: float = 0.0  # items in another order, each with its right index
    drop_item: float = 0.0  # the last item is missing
    duplicate_item: float = 0.0  # the last item is the first again
    nan: float = 0.0  # the first item's vector holds a NaN
    wrong_dimension: float = 0.0  # the first item's vector is one number short
    retry_after_seconds: float | None = 1.0  # Retry-After of a 429
    script: tuple[Kind, ...] = ()
    only: tuple[str, ...] = ()
    poison: tuple[str, ...] = ()
    fail_after: int | None = None

    def __post_init__(self) -> None:
        for name in ("script", "only", "poison"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        if unknown := set(self.script) - {*KINDS, "none"}:
            raise ValueError(f"not a fault: {sorted(unknown)}")
        if sum(getattr(self, kind) for kind in KINDS) > 1 + 1e-9:
            raise ValueError("the probabilities sum to more than 1")

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Faults from their JSON object; an unknown name is an error."""
        if unknown := set(value) - {field.name for field in fields(cls)}:
            raise ValueError(f"not a field of the faults: {sorted(unknown)}")
        return cls(**value)

    def poisoned(self, text: str) -> bool:
        """Whether the text contains a poison string."""
        return any(marker in text for marker in self.poison)


class FaultSource:
    """Deals out the faults: the same faults and the same order of requests give the same sequence."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.injected: Counter[str] = Counter()
        self._random = random.Random(faults.seed)
        self._dealt = 0

    def deal(self, path: str) -> Kind:
        """The fault of the next request; ``none`` for most."""
        if self.faults.only and not path.endswith(self.faults.only):
            return "none"
        kind = self._choose(self._dealt)
        self._dealt += 1
        if kind != "none":
            self.injected[kind] += 1
        return kind

    def _choose(self, number: int) -> Kind:
        if self.faults.fail_after is not None and number >= self.faults.fail_after:
            return "status_503"
        if number < len(self.faults.script):
            return self.faults.script[number]
        draw = self._random.random()
        for kind in KINDS:
            draw -= getattr(self.faults, kind)
            if draw < 0:
                return kind
        return "none"

"""Counts of a run while it lasts, and the report that they become."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import msgspec
import psutil

from tasks.records import DeadLetter, EmbedRecord, Reason, Receipt, Segment

MOST_SAMPLES = 20
MOST_SHOWN = 200
"""Dead letters that a report lists one by one; a request to Prefect may have 5 MiB."""


class Report(msgspec.Struct, frozen=True):
    """What a run did. ``documents = upserted + unchanged + duplicates + dead_letters`` at the end of the source.

    ``truncated`` of them were embedded without their end, as they are longer than the model takes.
    """

    job_id: str
    documents: int
    upserted: int
    unchanged: int
    duplicates: int
    dead_letters: int
    resumed: bool
    batches: int
    embedding_requests: int
    model_tokens: int
    truncated: int
    upsert_requests: int
    bytes_sent: int
    retries: dict[str, int]
    seconds: float
    stage_seconds: dict[str, float]
    documents_per_second: float
    peak_rss_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """The same under the same names, as plain JSON values."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        return values


class Counts(msgspec.Struct, frozen=True):
    """A tally that travels between processes: the same fields under the same names."""

    upserted: int
    unchanged: int
    duplicates: int
    batches: int
    embedding_requests: int
    model_tokens: int
    truncated: int
    upsert_requests: int
    bytes_sent: int
    left: int
    outside: int
    given_up: list[DeadLetter]
    sample_ids: list[str]
    stage_seconds: dict[str, float]
    peak_rss_bytes: int


_SUMMED = (
    *("upserted", "unchanged", "duplicates", "left", "outside"),
    *("batches", "embedding_requests", "model_tokens", "truncated", "upsert_requests", "bytes_sent"),
)


class Tally:
    """Counts every document exactly once, when its segment leaves the pipeline."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.total = 0
        self.upserted = self.unchanged = self.duplicates = 0
        self.batches = self.embedding_requests = self.model_tokens = 0
        self.upsert_requests = self.bytes_sent = self.truncated = 0
        self.dead_letters: Counter[Reason] = Counter()
        self.given_up: list[DeadLetter] = []
        self.left = self.outside = 0
        self.sample_ids: list[str] = []
        self.stage_seconds: defaultdict[str, float] = defaultdict(float)
        self.peak_rss_bytes = 0
        self._sampled, self._sample_stride = 0, 1
        self._clock = clock
        self._started = clock()
        self._process = psutil.Process()

    @property
    def first_dead_letters(self) -> list[DeadLetter]:
        """As many of them as are shown one by one."""
        return self.given_up[:MOST_SHOWN]

    @property
    def documents(self) -> int:
        """Documents accounted for so far."""
        return self.upserted + self.unchanged + self.duplicates + self.dead_letter_count

    @property
    def dead_letter_count(self) -> int:
        """Documents given up on so far, and those that an earlier run gave up on and this one was told to leave."""
        return self.dead_letters.total() + self.left

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return self._clock() - self._started

    def batched(self, segment: Segment) -> None:
        """Count what ended at the batch stage."""
        self.unchanged += segment.unchanged
        self.duplicates += segment.duplicates
        self.left += segment.left
        self.outside += segment.outside
        self._give_up(segment.dead_letters)
        self.batches += len(segment.batches)
        self.sample_memory()

    def embedded(self, record: EmbedRecord, *, from_checkpoint: bool) -> None:
        """Count what the embedder did; a checkpoint's answer cost nothing now."""
        self._give_up(record.dead_letters)
        self.truncated += record.truncated
        if not from_checkpoint:
            self.embedding_requests += record.embedding_requests
            self.model_tokens += record.model_tokens

    def receipted(self, receipt: Receipt, sample_id: str | None) -> None:
        """Count what the store confirmed; ``sample_id`` is one of it, to look for in later runs."""
        if sample_id is not None:
            self._sample(sample_id)
        self.upserted += len(receipt.entries) // 16
        self._give_up(receipt.dead_letters)
        self.upsert_requests += receipt.upsert_requests
        self.bytes_sent += receipt.bytes_sent

    def counts(self) -> Counts:
        """The counts as they stand, for another process."""
        return Counts(**{name: getattr(self, name) for name in Counts.__struct_fields__})

    def add(self, counts: Counts) -> None:
        """Take in what another process counted; its memory is not this one's, so that the larger of both stands."""
        for name in _SUMMED:
            setattr(self, name, getattr(self, name) + getattr(counts, name))
        self._give_up(counts.given_up)
        for sample_id in counts.sample_ids:
            self._sample(sample_id)
        for stage, seconds in counts.stage_seconds.items():
            self.stage_seconds[stage] += seconds
        self.peak_rss_bytes = max(self.peak_rss_bytes, counts.peak_rss_bytes)

    def _give_up(self, letters: list[DeadLetter]) -> None:
        self.dead_letters.update(letter.reason for letter in letters)
        self.given_up += letters

    def _sample(self, id_: str) -> None:
        """Keep a few ids that are spread over the run: every second goes when there are too many."""
        self._sampled += 1
        if self._sampled % self._sample_stride:
            return
        self.sample_ids.append(id_)
        if len(self.sample_ids) > MOST_SAMPLES:
            self.sample_ids, self._sample_stride = self.sample_ids[::2], 2 * self._sample_stride

    def sample_memory(self) -> int:
        """Resident bytes of this process now."""
        rss: int = self._process.memory_info().rss
        self.peak_rss_bytes = max(self.peak_rss_bytes, rss)
        return rss

    def report(self, *, job_id: str, resumed: bool, retries: Counter[str]) -> Report:
        """The counts as they stand."""
        self.sample_memory()
        seconds = self.seconds
        return Report(
            job_id=job_id,
            documents=self.documents,
            upserted=self.upserted,
            unchanged=self.unchanged,
            duplicates=self.duplicates,
            dead_letters=self.dead_letter_count,
            resumed=resumed,
            batches=self.batches,
            embedding_requests=self.embedding_requests,
            model_tokens=self.model_tokens,
            truncated=self.truncated,
            upsert_requests=self.upsert_requests,
            bytes_sent=self.bytes_sent,
            retries=dict(sorted(retries.items())),
            seconds=round(seconds, 3),
            stage_seconds={stage: round(spent, 3) for stage, spent in self.stage_seconds.items()},
            documents_per_second=round(self.documents / seconds, 1) if seconds else 0.0,
            peak_rss_bytes=self.peak_rss_bytes,
        )

"""How fast a run was over its time, kept small however long it takes."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

MOST_INTERVALS = 16


@dataclass(frozen=True, slots=True)
class Interval:
    """A stretch of the run: seconds since its start at which it ended, and the documents done in it per second."""

    until_seconds: float
    documents_per_second: float


@dataclass(slots=True)
class Throughput:
    """Documents done at points in time; of too many, every second one goes and the next ones lie twice as far apart."""

    points: list[tuple[float, int]] = field(default_factory=lambda: [(0.0, 0)])
    apart_seconds: float = 1.0

    def sample(self, seconds: float, documents: int) -> None:
        """Take note of how many documents are done after so many seconds; what comes too soon is passed over."""
        if seconds - self.points[-1][0] < self.apart_seconds:
            return
        self.points.append((seconds, documents))
        if len(self.points) > MOST_INTERVALS:
            self.points, self.apart_seconds = self.points[::2], 2 * self.apart_seconds

    def intervals(self, seconds: float, documents: int) -> list[Interval]:
        """The run from its start to its end, which came after so many seconds and documents."""
        points = [point for point in self.points if point[0] < seconds]
        if len(points) > 1 and seconds - points[-1][0] < self.apart_seconds / 2:
            points.pop()  # a rest too short to say anything belongs to the interval before it
        points.append((seconds, documents))
        pairs = itertools.pairwise(points)
        return [Interval(end, (then - now) / (end - start)) for (start, now), (end, then) in pairs]

"""A billion documents without a network: the limiter over the whole run in virtual time, the ledger at its sizes.

``python benchmarks/simulate.py`` takes some minutes and at most some gigabytes. The limiter is `tasks.limits`'s own
`Budget`, asked for one request after another on a clock that is a number; what it admits is then checked minute by
minute. The ledger is `tasks.ledger`'s own over random entries, each size in a process of its own, and so is the scan
that finds ids which come again. `docs/scaling.md` quotes the figures.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tasks.ledger import Ledger  # noqa: E402 - run as a script, the path above comes first
from tasks.limits.budget import Budget  # noqa: E402
from tasks.load.stage import Ids, merged  # noqa: E402

DOCUMENTS = 1_000_000_000
MODEL_TOKENS_PER_DOCUMENT = 250
"""Of a kilobyte of English text, at four characters a model token (OpenAI: help centre)."""
BATCH_SIZE = 1000
TIERS = {"tier 1": (3_000, 1_000_000), "tier 4": (10_000, 5_000_000), "tier 5": (10_000, 10_000_000)}
"""Requests and model tokens a minute of text-embedding-3-small (OpenAI: rate limits, model page)."""
LEDGERS = (1_000_000, 10_000_000, 30_000_000)
SEGMENT, LOOKUPS = 1000, 200
MINUTE = 60.0
_SEED = 11


class Limiter(msgspec.Struct, frozen=True):
    """One tier's run. ``fullest_minute`` and ``average`` are shares of the limit on model tokens that binds."""

    tier: str
    requests: int
    days: float
    fullest_minute: float
    average: float
    microseconds_per_request: float


class LedgerRun(msgspec.Struct, frozen=True):
    """One size. Seconds to build from receipts; microseconds a document to look a segment up; peak bytes a document."""

    entries: int
    build_seconds: float
    lookup_microseconds: float
    stored_bytes: int
    ledger_peak_bytes: float
    scan_seconds: float
    scan_peak_bytes: float


def limiter(tier: str, documents: int) -> Limiter:
    """Admit every request of a run as early as the budget allows, and check each rolling minute."""
    per_minute, tokens_per_minute = TIERS[tier]
    requests = documents // BATCH_SIZE
    chance = np.random.default_rng(_SEED)
    costs = chance.normal(BATCH_SIZE * MODEL_TOKENS_PER_DOCUMENT, 5_000, requests).astype(np.int64)
    moments = np.empty(requests)
    budget, now = Budget(per_minute, tokens_per_minute), 0.0
    started = time.process_time()
    for number, cost in enumerate(costs.tolist()):
        now += budget.reserve(cost, now)
        moments[number] = now
    spent = time.process_time() - started
    return Limiter(
        tier=tier,
        requests=requests,
        days=round(now / 86_400, 2),
        fullest_minute=round(_fullest(moments, costs) / tokens_per_minute, 4),
        average=round(float(costs[:-1].sum()) / (now / MINUTE) / tokens_per_minute, 4),
        microseconds_per_request=round(spent / requests * 1e6, 1),
    )


def _fullest(moments: NDArray[np.float64], costs: NDArray[np.int64]) -> int:
    """The most that any 60 seconds hold, beginning with each admission."""
    sums = np.concatenate(([0], np.cumsum(costs)))
    ends = np.searchsorted(moments, moments + MINUTE)
    return int((sums[ends] - sums[:-1]).max())


def ledger(entries: int) -> LedgerRun:
    """Build the ledger of a shard from receipts, look segments up; then scan as many ids."""
    build, lookup, stored, ledger_peak = _apart(_ledger, entries)
    scan, _, _, scan_peak = _apart(_scan, entries)
    return LedgerRun(
        entries=entries,
        build_seconds=round(build, 2),
        lookup_microseconds=round(lookup, 3),
        stored_bytes=int(stored),
        ledger_peak_bytes=round(ledger_peak / entries, 1),
        scan_seconds=round(scan, 2),
        scan_peak_bytes=round(scan_peak / entries, 1),
    )


Figures = tuple[float, float, float, float]


def _apart(act: Callable[[int], Figures], entries: int) -> Figures:
    """In a process of its own, so that its peak is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(act, (entries,))


def _ledger(entries: int) -> Figures:
    before = _peak_bytes()
    known = _random(entries)
    started = time.process_time()
    built = Ledger.of([known])
    build = time.process_time() - started
    stored = len(built.to_bytes())
    segments = np.split(known[: SEGMENT * LOOKUPS], LOOKUPS)
    started = time.process_time()
    held = sum(int(built.holds(segment).sum()) for segment in segments)
    lookup = (time.process_time() - started) / held * 1e6
    return build, lookup, stored, _peak_bytes() - before


def _scan(entries: int) -> Figures:
    before = _peak_bytes()
    ids = Ids(entries, _random(entries), None)
    started = time.process_time()
    merged([ids])
    return time.process_time() - started, 0.0, 0.0, _peak_bytes() - before


def _random(entries: int) -> NDArray[np.uint64]:
    return np.random.default_rng(_SEED).integers(0, 2**64, (entries, 2), np.uint64)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def show(limiters: list[Limiter], ledgers: list[LedgerRun]) -> None:
    """Print both tables."""
    console = Console(width=None if sys.stdout.isatty() else 130)
    table = Table(title="the limiter, in virtual time", title_justify="left")
    for name in ("", "requests", "days", "fullest minute", "average", "CPU us/request"):
        table.add_column(name, justify="right" if name else "left")
    for each in limiters:
        table.add_row(
            *(each.tier, f"{each.requests:,}", f"{each.days:,}", f"{each.fullest_minute:.2%}", f"{each.average:.2%}"),
            f"{each.microseconds_per_request}",
        )
    console.print(table)
    table = Table(title="the ledger and the scan of one job", title_justify="left")
    for name in ("entries", "build s", "look up us", "stored MB", "peak bytes", "scan s", "scan's peak bytes"):
        table.add_column(name, justify="right")
    for run in ledgers:
        table.add_row(
            *(
                f"{run.entries:,}",
                f"{run.build_seconds}",
                f"{run.lookup_microseconds}",
                f"{run.stored_bytes / 1e6:,.0f}",
            ),
            *(f"{run.ledger_peak_bytes}", f"{run.scan_seconds}", f"{run.scan_peak_bytes}"),
        )
    console.print(table)


def main() -> None:
    """Simulate, print the tables, write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=DOCUMENTS)
    parser.add_argument("--ledgers", type=int, nargs="+", default=LEDGERS)
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"), help="where results go")
    asked = parser.parse_args()
    limiters = [limiter(tier, asked.documents) for tier in TIERS]
    ledgers = [ledger(entries) for entries in asked.ledgers]
    held = {"cores": os.cpu_count(), "python": platform.python_version(), "numpy": np.__version__}
    results = {"conditions": held, "limiter": limiters, "ledger": ledgers}
    asked.json.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=2) + b"\n")
    show(limiters, ledgers)


if __name__ == "__main__":
    main()

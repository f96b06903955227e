"""How near a run comes to what its provider's latency allows: latency by concurrency, OpenAI to Pinecone.

``python benchmarks/latency.py`` runs the command line once for each pair against emulators of both providers. Ideal is
concurrency / latency x batch size; it holds where it is clearly below what one process does at no latency.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.corpus import corpus  # noqa: E402 - run as a script, the path above comes first
from benchmarks.openai_pinecone import BATCH_SIZE, Bench, Scenario, conditions  # noqa: E402
from benchmarks.prefect_server import prefect_server  # noqa: E402

LATENCIES = (0.0, 20.0, 100.0, 500.0)
CONCURRENCIES = (1, 10, 100)
CELL_SECONDS = 8.0
"""About so long takes a run at its ideal."""
DOCUMENTS = (2_000, 20_000)
"""The fewest and the most documents of a run."""


class Cell(msgspec.Struct, frozen=True):
    """One run. ``ideal`` is in documents a second, None at no latency; ``share_of_ideal`` likewise."""

    latency_seconds: float
    concurrency: int
    documents: int
    documents_per_second: float
    ideal: float | None
    share_of_ideal: float | None
    cpu_seconds: float
    peak_rss_bytes: int


def documents_of(ideal: float | None) -> int:
    """How many documents show this pace, in whole batches."""
    fewest, most = DOCUMENTS
    wanted = most if ideal is None else min(most, max(fewest, ideal * CELL_SECONDS))
    return round(wanted / BATCH_SIZE) * BATCH_SIZE


def cell(bench: Bench, sources: Path, latency_seconds: float, concurrency: int) -> Cell:
    """Run one pair once."""
    ideal = concurrency / latency_seconds * BATCH_SIZE if latency_seconds else None
    documents = documents_of(ideal)
    corpus(sources, documents)
    run = bench.run("millrace", Scenario(documents, latency_seconds))
    return Cell(
        latency_seconds=latency_seconds,
        concurrency=concurrency,
        documents=documents,
        documents_per_second=run.documents_per_second,
        ideal=ideal,
        share_of_ideal=round(run.documents_per_second / ideal, 3) if ideal else None,
        cpu_seconds=run.cpu_seconds,
        peak_rss_bytes=run.peak_rss_bytes,
    )


def show(cells: list[Cell]) -> None:
    """Print the table: a row a latency, a column a concurrency."""
    concurrencies = sorted({each.concurrency for each in cells})
    table = Table(title="documents/s, and the share of concurrency / latency x batch size", title_justify="left")
    table.add_column("an embedding takes")
    for concurrency in concurrencies:
        table.add_column(f"{concurrency} in flight", justify="right")
    for latency in sorted({each.latency_seconds for each in cells}):
        row = {each.concurrency: each for each in cells if each.latency_seconds == latency}
        table.add_row(f"{latency * 1000:g} ms", *(_shown(row[concurrency]) for concurrency in concurrencies))
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def _shown(found: Cell) -> str:
    share = "" if found.share_of_ideal is None else f" ({found.share_of_ideal:.0%} of {found.ideal:,.0f})"
    return f"{found.documents_per_second:,.0f}{share}"


def main() -> None:
    """Run every pair, print the table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency", type=float, nargs="+", default=LATENCIES, help="ms of an embedding request")
    parser.add_argument(
        "--concurrency", type=int, nargs="+", default=CONCURRENCIES, help="embedding requests in flight"
    )
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"), help="where results go")
    parser.add_argument("--corpus", type=Path, default=Path(tempfile.gettempdir(), "millrace-corpus"))
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="millrace-benchmark-"))
    held = conditions(concurrency=asked.concurrency, runs=1)
    cells: list[Cell] = []
    try:
        with prefect_server(folder) as url:
            for concurrency in asked.concurrency:
                bench = Bench(folder, asked.corpus, url, concurrency)
                for latency in asked.latency:
                    cells.append(cell(bench, asked.corpus, latency / 1000, concurrency))
                    sys.stderr.write(f"{msgspec.json.encode(cells[-1]).decode()}\n")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    results = {"conditions": held, "runs": cells}
    asked.json.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=2) + b"\n")
    show(cells)


if __name__ == "__main__":
    main()

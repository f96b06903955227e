"""Whether time and memory are straight lines: the same documents from 10,000 to 1,000,000 of them.

``python benchmarks/growth.py`` takes some minutes; feature hashing to the Pinecone emulator, as `benchmarks/memory.py`
does it, so that nothing waits. A line through the runs gives what one more document costs; how far the farthest run is
from it tells how straight it is.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.memory import DIMENSION, Run, Scenario, run  # noqa: E402 - run as a script, the path above comes first
from benchmarks.prefect_server import prefect_server  # noqa: E402

DOCUMENTS = (10_000, 30_000, 100_000, 300_000, 1_000_000)
TEXT_CHARACTERS, SEGMENT_DOCUMENTS = 500, 1000


class Line(msgspec.Struct, frozen=True):
    """A straight line through the runs. ``farthest`` is the greatest share by which a run is off it."""

    of: str
    at_none: float
    per_document: float
    farthest: float


def line(of: str, documents: Sequence[int], values: Sequence[float]) -> Line:
    """The line that fits best; small runs count as much as large ones, so its distances are shares."""
    x, y = np.asarray(documents, np.float64), np.asarray(values, np.float64)
    per_document, at_none = np.polyfit(x, y, 1, w=1 / y)
    farthest = np.abs((at_none + per_document * x) / y - 1).max()
    return Line(of, float(at_none), float(per_document), round(float(farthest), 3))


def lines(runs: Sequence[Run]) -> list[Line]:
    """Seconds and peak bytes by documents."""
    documents = [each.scenario.documents for each in runs]
    return [
        line("seconds", documents, [each.wall_seconds for each in runs]),
        line("peak bytes", documents, [each.peak_rss_bytes for each in runs]),
    ]


def show(runs: Sequence[Run], found: Sequence[Line]) -> None:
    """Print the runs and their lines."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    table = Table(title="hashing to the Pinecone emulator", title_justify="left")
    for name in ("documents", "seconds", "documents/s", "peak MB"):
        table.add_column(name, justify="right")
    for each in runs:
        table.add_row(
            f"{each.scenario.documents:,}",
            f"{each.wall_seconds:,.1f}",
            f"{each.documents_per_second:,.0f}",
            f"{each.peak_rss_bytes / 1e6:,.0f}",
        )
    console.print(table)
    for each_line in found:
        console.print(
            f"{each_line.of}: {each_line.at_none:,.4g} and {each_line.per_document:.3g} a document, "
            f"the farthest run is {each_line.farthest:.0%} off"
        )


def main() -> None:
    """Run each size once, print the table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, nargs="+", default=DOCUMENTS)
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"), help="where results go")
    parser.add_argument("--folder", type=Path, default=None, help="where sources are written, deleted afterwards")
    asked = parser.parse_args()
    if len(set(asked.documents)) < 2:
        parser.error("--documents: two sizes at least")
    folder = Path(tempfile.mkdtemp(prefix="millrace-growth-", dir=asked.folder))
    runs: list[Run] = []
    try:
        with prefect_server(folder) as url:
            for documents in sorted(asked.documents):
                scenario = Scenario(f"{documents:,}", documents, TEXT_CHARACTERS, SEGMENT_DOCUMENTS)
                runs.append(run(scenario, folder, url, runs[0] if runs else None))
                sys.stderr.write(f"{msgspec.json.encode(runs[-1]).decode()}\n")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    found = lines(runs)
    held: dict[str, Any] = {
        "cores": os.cpu_count(),
        "load_average_at_end": [round(value, 1) for value in os.getloadavg()],
    }
    held |= {"python": platform.python_version(), "dimension": DIMENSION}
    results = {"conditions": held, "lines": found, "runs": runs}
    asked.json.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=2) + b"\n")
    show(runs, found)


if __name__ == "__main__":
    main()

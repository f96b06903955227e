"""How much memory a run takes: the peak over a small source, over one ten times as large, and over one huge JSON array.

``python benchmarks/memory.py`` runs the command line as a process of its own over generated sources: feature hashing,
so that nothing waits, into the Pinecone emulator (a process of its own that judges records and keeps no values), beside
one standing Prefect server. The peak is the kernel's, of that process alone. More documents may take 16 bytes more
each, for the ledger; all else is what is in flight.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.prefect_server import prefect_server  # noqa: E402 - run as a script, the path above comes first
from benchmarks.process import environment_for, measured  # noqa: E402
from tests.emulators.process import EmulatorProcess  # noqa: E402

INDEX, DIMENSION = "bench", 64
LEDGER_BYTES = 16
ALLOWED_RATIO = 1.25
RUN_SECONDS = 3600
_WORDS = ("water", "wheel", "mill", "grain", "stone", "river", "sluice", "flour", "gear", "weir")


class Scenario(msgspec.Struct, frozen=True):
    """One source, and how many documents of it make a segment (a tenth of it is a batch)."""

    name: str
    documents: int
    text_characters: int
    segment_documents: int
    is_array: bool = False


class Run(msgspec.Struct, frozen=True):
    """What one process took. ``peak_over_first`` is its peak, less 16 bytes a document, over the first scenario's."""

    scenario: Scenario
    source_bytes: int
    peak_rss_bytes: int
    peak_over_first: float
    wall_seconds: float
    documents_per_second: float


def write_source(file: Path, scenario: Scenario) -> int:
    """Write the documents of a scenario, as lines or as one array; the file's bytes."""
    with file.open("wb") as out:
        if scenario.is_array:
            out.write(b'{"documents": [')
        for number, document in enumerate(_documents(scenario)):
            if scenario.is_array and number:
                out.write(b",")
            out.write(document)
            out.write(b"\n")
        if scenario.is_array:
            out.write(b"]}\n")
    return file.stat().st_size


def _documents(scenario: Scenario) -> Iterator[bytes]:
    for number in range(scenario.documents):
        words = " ".join(_WORDS[(number >> shift) % len(_WORDS)] for shift in range(8))
        text = f"{number} " + (words + " ") * (scenario.text_characters // len(words))
        yield msgspec.json.encode({"id": f"document-{number:08}", "text": text, "metadata": {"page": number % 97}})


def run(scenario: Scenario, folder: Path, prefect_url: str, first: Run | None) -> Run:
    """One run of the command line, its source written before and deleted after.

    Raises:
        RuntimeError: it failed, or not every document landed exactly once.
    """
    work = Path(tempfile.mkdtemp(dir=folder))
    source = work / ("source.json" if scenario.is_array else "source.jsonl")
    size = write_source(source, scenario)
    with EmulatorProcess("pinecone", "--drop-values", "--index", f"{INDEX}:{DIMENSION}") as pinecone:
        environment = environment_for(pinecone, work, prefect_url)
        outcome = measured(command_for(scenario, source), environment, work, within_seconds=RUN_SECONDS)
        state = pinecone.state()
    shutil.rmtree(work)
    if (state["upserted"], state["upserted_again"]) != (scenario.documents, 0):
        raise RuntimeError(f"{scenario.name}: {state}")
    own = outcome.peak_rss_bytes - LEDGER_BYTES * scenario.documents
    return Run(
        scenario=scenario,
        source_bytes=size,
        peak_rss_bytes=outcome.peak_rss_bytes,
        peak_over_first=round(own / (first.peak_rss_bytes - LEDGER_BYTES * first.scenario.documents), 3)
        if first
        else 1.0,
        wall_seconds=round(outcome.wall_seconds, 1),
        documents_per_second=outcome.report["documents_per_second"],
    )


def command_for(scenario: Scenario, source: Path) -> list[str]:
    """The command line that fills a job from this source."""
    batch_size = scenario.segment_documents // 10
    return [
        *(sys.executable, str(ROOT / "flows/ingest.py"), "--source", str(source), "--job-id", "bench", "--json"),
        *("--embedder", f"hashing:{DIMENSION}", "--store", f"pinecone:{INDEX}"),
        *("--batch-size", str(batch_size), "--checkpoint-interval", "10"),
    ]


def show(runs: list[Run]) -> None:
    """Print the table."""
    table = Table(title="peak memory of a run", title_justify="left")
    for name in ("", "documents", "source MB", "peak MB", "over the first, less the ledger", "documents/s"):
        table.add_column(name, justify="right" if name else "left")
    for each in runs:
        table.add_row(
            each.scenario.name,
            f"{each.scenario.documents:,}",
            f"{each.source_bytes / 1e6:,.0f}",
            f"{each.peak_rss_bytes / 1e6:,.1f}",
            f"{each.peak_over_first:.3f}",
            f"{each.documents_per_second:,.0f}",
        )
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def main() -> None:
    """Run each scenario once, print the table, write the results; fails where memory grows with the source."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=100_000, help="of the first source; the second has ten times")
    parser.add_argument("--array-bytes", type=float, default=2e9, help="of the JSON array; 0 leaves it out")
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"), help="where results go")
    parser.add_argument("--folder", type=Path, default=None, help="where sources are written, deleted afterwards")
    asked = parser.parse_args()
    scenarios = [
        Scenario("lines", asked.documents, 500, 1000),
        Scenario("ten times the lines", 10 * asked.documents, 500, 1000),
    ]
    if asked.array_bytes:
        scenarios.append(Scenario("one JSON array", round(asked.array_bytes / 9_750), 10_000, 100, is_array=True))
    folder = Path(tempfile.mkdtemp(prefix="millrace-memory-", dir=asked.folder))
    runs: list[Run] = []
    try:
        with prefect_server(folder) as url:
            for scenario in scenarios:
                runs.append(run(scenario, folder, url, runs[0] if runs else None))
                sys.stderr.write(f"{msgspec.json.encode(runs[-1]).decode()}\n")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    conditions = {"cores": os.cpu_count(), "python": platform.python_version(), "dimension": DIMENSION}
    results = {"conditions": {**conditions, "system": f"{platform.system()} {platform.machine()}"}, "runs": runs}
    asked.json.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=2) + b"\n")
    show(runs)
    if grown := [each.scenario.name for each in runs if each.peak_over_first > ALLOWED_RATIO]:
        sys.exit(f"memory grows with the source: {', '.join(grown)}")


if __name__ == "__main__":
    main()

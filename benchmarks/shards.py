"""What shards bring a job that is bound by the processor: 1, 2 and 4 of them, in this process and on Dask's workers.

``python benchmarks/shards.py`` runs the command line as a process of its own over documents of 20 KB: feature hashing,
1.7 ms of CPU a document on the machine this was written on, into the Pinecone emulator, a process of its own that
judges records and keeps no values. Vectors are short and texts are not stored, so that the emulator, which shares the
processors, has little to do: its CPU is in the table. Scenarios take turns, medians are shown. Workers are as many as
there are shards, at most one a core. ``--no-preflight`` leaves out what is the same for all.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.corpus import corpus  # noqa: E402 - run as a script, the path above comes first
from benchmarks.prefect_server import prefect_server  # noqa: E402
from benchmarks.process import emulators_cpu, environment_for, measured  # noqa: E402
from tests.emulators.process import EmulatorProcess  # noqa: E402

INDEX, DIMENSION, TEXTS_JOINED = "bench", 256, 20
RUN_SECONDS = 900
MEASURE = ("local", 1)
SCENARIOS = [MEASURE, ("local", 2), ("local", 4), ("dask", 2), ("dask", 4)]


class Run(msgspec.Struct, frozen=True):
    """One process from start to exit, or the medians of several.

    ``pipeline_seconds`` are the report's own, the start of workers and the scan included; ``wall_seconds`` and
    ``cpu_seconds`` (user and system, with the workers') are the whole process's, start-up of Python included.
    """

    runner: str
    shards: int
    pipeline_seconds: float
    wall_seconds: float
    cpu_seconds: float
    emulator_cpu_seconds: float


def source_of(folder: Path, documents: int) -> Path:
    """The corpus's texts, so many of them joined into one document."""
    file = folder / f"long-{documents}.jsonl"
    if file.exists():
        return file
    unfinished = file.with_suffix(".part")
    texts: list[str] = []
    with corpus(folder, 1000).open("rb") as lines, unfinished.open("wb") as out:
        texts += [msgspec.json.decode(line)["text"] for line in lines]
        for number in range(documents):
            chosen = (texts[(number * 7 + place * 31) % len(texts)] for place in range(TEXTS_JOINED))
            text = f"{number} {' '.join(chosen)}"
            out.write(msgspec.json.encode({"id": f"document-{number:08}", "text": text}) + b"\n")
    unfinished.replace(file)
    return file


def run(runner: str, shards: int, source: Path, documents: int, folder: Path, prefect_url: str) -> Run:
    """One run of the command line.

    Raises:
        RuntimeError: it failed, or not every document landed exactly once.
    """
    work = Path(tempfile.mkdtemp(dir=folder))
    command = [
        *(sys.executable, str(ROOT / "flows/ingest.py"), "--source", str(source), "--job-id", "bench", "--json"),
        *("--embedder", f"hashing:{DIMENSION}", "--store", f"pinecone:{INDEX}", "--no-text", "--no-preflight"),
        *("--shards", str(shards), "--runner", runner),
    ]
    with EmulatorProcess("pinecone", "--drop-values", "--index", f"{INDEX}:{DIMENSION}") as pinecone:
        before = emulators_cpu()
        environment = environment_for(pinecone, work, prefect_url)
        outcome = measured(command, environment, work, within_seconds=RUN_SECONDS)
        after = emulators_cpu()
        state = pinecone.state()
    shutil.rmtree(work)
    if (state["upserted"], state["upserted_again"]) != (documents, 0):
        raise RuntimeError(f"{runner}, {shards} shards: {state}")
    return Run(
        runner=runner,
        shards=shards,
        pipeline_seconds=outcome.report["seconds"],
        wall_seconds=round(outcome.wall_seconds, 2),
        cpu_seconds=round(outcome.cpu_seconds, 2),
        emulator_cpu_seconds=round(after["pinecone"] - before["pinecone"], 2),
    )


def medians(runs: list[Run]) -> list[Run]:
    """One line for each scenario."""
    found = []
    for runner, shards in dict.fromkeys((each.runner, each.shards) for each in runs):
        own = [each for each in runs if (each.runner, each.shards) == (runner, shards)]
        fields = (field for field in Run.__struct_fields__ if field.endswith("_seconds"))
        middle = {field: round(statistics.median(getattr(each, field) for each in own), 2) for field in fields}
        found.append(Run(runner, shards, **middle))
    return found


def show(found: list[Run], documents: int) -> None:
    """Print the table."""
    measure = next((each for each in found if (each.runner, each.shards) == MEASURE), found[0])
    table = Table(title=f"{documents:,} documents of 20 KB, feature hashing", title_justify="left")
    for name in (
        "runner",
        "shards",
        "pipeline s",
        "documents/s",
        "to one",
        "wall s",
        "to one",
        "CPU s",
        "emulator CPU s",
    ):
        table.add_column(name, justify="left" if name == "runner" else "right")
    for each in found:
        table.add_row(
            each.runner,
            str(each.shards),
            f"{each.pipeline_seconds:.1f}",
            f"{documents / each.pipeline_seconds:,.0f}",
            f"{measure.pipeline_seconds / each.pipeline_seconds:.2f}",
            f"{each.wall_seconds:.1f}",
            f"{measure.wall_seconds / each.wall_seconds:.2f}",
            f"{each.cpu_seconds:.1f}",
            f"{each.emulator_cpu_seconds:.1f}",
        )
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def main() -> None:
    """Run everything in turns, print the table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", nargs="+", metavar="RUNNER,SHARDS", default=[f"{r},{n}" for r, n in SCENARIOS])
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"), help="where results go")
    parser.add_argument("--corpus", type=Path, default=Path(tempfile.gettempdir(), "millrace-corpus"))
    asked = parser.parse_args()
    source = source_of(asked.corpus, asked.documents)
    load_before = [round(value, 1) for value in os.getloadavg()]
    folder = Path(tempfile.mkdtemp(prefix="millrace-shards-"))
    runs: list[Run] = []
    try:
        with prefect_server(folder) as url:
            for _ in range(asked.runs):
                for runner, shards in (each.split(",") for each in asked.only):
                    runs.append(run(runner, int(shards), source, asked.documents, folder, url))
                    sys.stderr.write(f"{msgspec.json.encode(runs[-1]).decode()}\n")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    conditions = {
        "cores": os.cpu_count(),
        "load_average_at_start": load_before,
        "load_average_at_end": [round(value, 1) for value in os.getloadavg()],
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "documents": asked.documents,
        "dimension": DIMENSION,
        "runs": asked.runs,
    }
    found = medians(runs)
    results = {"conditions": conditions, "medians": found, "runs": runs}
    asked.json.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=2) + b"\n")
    show(found, asked.documents)
    Console().print(", ".join(f"{name} {value}" for name, value in conditions.items()))


if __name__ == "__main__":
    main()

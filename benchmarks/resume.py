"""How fast a finished job is found finished: every document read, hashed and looked up, nothing embedded or upserted.

``python benchmarks/resume.py`` fills a job from generated JSONL (about 1 KB a document) by feature hashing into the
Pinecone emulator, then runs the same command again, each time as a process of its own beside one standing Prefect
server. The rate is the report's own: from the first look at the source to the end, start-up left out. Beside it stands
what the work itself takes on this machine at this time: a bare loop that reads ids, decodes and hashes documents.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.memory import (  # noqa: E402 - run as a script, the path above comes first
    DIMENSION,
    INDEX,
    RUN_SECONDS,
    Scenario,
    command_for,
    write_source,
)
from benchmarks.prefect_server import prefect_server  # noqa: E402
from benchmarks.process import environment_for, measured  # noqa: E402
from tasks.fingerprints import Fingerprints  # noqa: E402
from tasks.load.source import open_source  # noqa: E402
from tasks.load.stage import scan_ids  # noqa: E402
from tasks.settings import SourceSettings  # noqa: E402
from tests.emulators.process import EmulatorProcess  # noqa: E402

TEXT_CHARACTERS = 900
WANTED_PER_SECOND = 100_000


class Resume(msgspec.Struct, frozen=True):
    """One run over a finished job. ``wall_seconds`` are of the whole process, start-up included."""

    documents: int
    source_bytes: int
    seconds: float
    documents_per_second: float
    wall_seconds: float
    peak_rss_bytes: int


class Bare(msgspec.Struct, frozen=True):
    """The work of a resume in one bare loop. ``cpu_seconds`` is what it costs where the machine does nothing else."""

    seconds: float
    cpu_seconds: float


def bare(location: Path) -> Bare:
    """Read every id, decode and hash every document, without Prefect."""
    wall, cpu = time.perf_counter(), time.process_time()
    source = open_source(SourceSettings(location=str(location)))
    fingerprints = Fingerprints(embedder="bare", store="bare", keep_text=True)
    scan_ids(source.ids())
    for loaded in source.documents(1000):
        fingerprints.entries(loaded.documents, fingerprints.vector_keys(loaded.documents))
    return Bare(round(time.perf_counter() - wall, 3), round(time.process_time() - cpu, 3))


def measure(documents: int, times: int, folder: Path, prefect_url: str) -> tuple[list[Resume], Bare]:
    """Fill a job once, resume it some times, and do its bare work.

    Raises:
        RuntimeError: a resume embedded or upserted anything.
    """
    scenario = Scenario("resume", documents, TEXT_CHARACTERS, 1000)
    source = folder / "source.jsonl"
    size = write_source(source, scenario)
    with EmulatorProcess("pinecone", "--index", f"{INDEX}:{DIMENSION}") as pinecone:
        command, environment = command_for(scenario, source), environment_for(pinecone, folder, prefect_url)
        measured(command, environment, folder, within_seconds=RUN_SECONDS)
        resumes = []
        for _ in range(times):
            outcome = measured(command, environment, folder, within_seconds=RUN_SECONDS)
            report = outcome.report
            done = report["unchanged"], report["embedding_requests"], report["upsert_requests"]
            if done != (documents, 0, 0):
                raise RuntimeError(f"unchanged, embedding requests, upsert requests: {done}")
            seconds, rate = report["seconds"], report["documents_per_second"]
            wall, peak = round(outcome.wall_seconds, 1), outcome.peak_rss_bytes
            resumes.append(Resume(documents, size, seconds, rate, wall, peak))
            sys.stderr.write(f"{msgspec.json.encode(resumes[-1]).decode()}\n")
    return resumes, bare(source)


def show(resumes: list[Resume]) -> None:
    """Print the table."""
    table = Table(title="a finished job, run again", title_justify="left")
    for name in ("documents", "source MB", "documents/s", "seconds", "wall seconds", "peak MB"):
        table.add_column(name, justify="right")
    for each in resumes:
        table.add_row(
            f"{each.documents:,}",
            f"{each.source_bytes / 1e6:,.0f}",
            f"{each.documents_per_second:,.0f}",
            f"{each.seconds:.2f}",
            f"{each.wall_seconds:.1f}",
            f"{each.peak_rss_bytes / 1e6:,.1f}",
        )
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def main() -> None:
    """Measure, print the table, write the results; says so where the best run is slower than wanted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"), help="where results go")
    parser.add_argument("--folder", type=Path, default=None, help="where the source is written, deleted afterwards")
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="millrace-resume-", dir=asked.folder))
    try:
        with prefect_server(folder) as url:
            resumes, work = measure(asked.documents, asked.times, folder, url)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    conditions = {"cores": os.cpu_count(), "python": platform.python_version(), "dimension": DIMENSION}
    conditions["system"] = f"{platform.system()} {platform.machine()}"
    results = {"conditions": conditions, "runs": resumes, "bare": work}
    asked.json.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=2) + b"\n")
    show(resumes)
    best = max(each.documents_per_second for each in resumes)
    if best < WANTED_PER_SECOND:
        sys.stderr.write(
            f"{best:,.0f} documents/s are less than {WANTED_PER_SECOND:,}; the bare work took {work.seconds} s here, "
            f"{work.cpu_seconds} s of it on a core\n"
        )


if __name__ == "__main__":
    main()

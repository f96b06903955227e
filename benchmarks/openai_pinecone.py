"""How fast, and at what cost: Millrace beside a bare asyncio loop, OpenAI to Pinecone, over the official SDKs.

``python benchmarks/openai_pinecone.py`` runs each contestant as a process of its own against fresh emulators of both
providers (processes of their own on loopback) and one standing Prefect server. The contestants take turns, so that what
else the machine does hits all alike; medians are shown. Start-up is measured by runs over a single document.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.corpus import corpus  # noqa: E402 - run as a script, the path above comes first
from benchmarks.prefect_server import prefect_server  # noqa: E402
from benchmarks.process import emulators_cpu, environment_for, measured  # noqa: E402
from tests.emulators.process import EmulatorProcess  # noqa: E402

INDEX, DIMENSION, BATCH_SIZE = "bench", 1536, 100
CONTESTANTS = ("bare default", "bare tuned", "millrace")
MEASURE = "bare tuned"
PACKAGES = ("prefect", "openai", "pinecone", "numpy", "orjson", "msgspec")
RUN_SECONDS = 900


class Scenario(msgspec.Struct, frozen=True):
    """So many documents, at so much latency of each embedding request and of each upsert request."""

    documents: int
    latency_seconds: float = 0.0
    store_latency_seconds: float = 0.0


class Run(msgspec.Struct, frozen=True):
    """One process from start to exit.

    ``documents_per_second`` is of the pipeline itself, as its report says; ``wall_seconds`` and ``cpu_seconds`` (user
    and system) are the whole process, start-up included; the emulators' seconds are their own CPU meanwhile.
    """

    contestant: str
    scenario: Scenario
    documents_per_second: float
    pipeline_seconds: float
    wall_seconds: float
    cpu_seconds: float
    system_cpu_seconds: float
    peak_rss_bytes: int
    openai_emulator_cpu_seconds: float
    pinecone_emulator_cpu_seconds: float


class Line(msgspec.Struct, frozen=True):
    """Medians over the runs of one contestant in one scenario.

    ``cpu_microseconds_per_document`` leaves start-up out: it is what more documents cost beyond a run over one.
    ``share_of_ideal`` is of concurrency / latency x batch size, None where there is no latency.
    """

    contestant: str
    scenario: Scenario
    documents_per_second: float
    wall_seconds: float
    cpu_microseconds_per_document: float
    peak_rss_bytes: int
    ratio_to_bare: float
    share_of_ideal: float | None


class Bench:
    """Runs contestants; everything that they write goes into ``folder``."""

    def __init__(self, folder: Path, sources: Path, prefect_url: str, concurrency: int) -> None:
        self._folder = folder
        self._sources = sources
        self._prefect_url = prefect_url
        self._concurrency = concurrency

    def run(self, contestant: str, scenario: Scenario) -> Run:
        """One contestant once, against fresh emulators; RuntimeError where not every document landed exactly once."""
        index = ("--drop-values", "--index", f"{INDEX}:{DIMENSION}")
        with (
            EmulatorProcess("openai", "--latency", str(scenario.latency_seconds)) as openai,
            EmulatorProcess("pinecone", "--latency", str(scenario.store_latency_seconds), *index) as pinecone,
            tempfile.TemporaryDirectory(dir=self._folder) as work,
        ):
            before = emulators_cpu()
            source = corpus(self._sources, scenario.documents)
            command, environment = self._command(contestant, source), self._environment(openai, pinecone, Path(work))
            outcome = measured(command, environment, Path(work), within_seconds=RUN_SECONDS)
            after = emulators_cpu()
            landed = (openai.state()["texts"], pinecone.state()["upserted"], pinecone.state()["upserted_again"])
        if landed != (scenario.documents, scenario.documents, 0):
            raise RuntimeError(f"{contestant}: {scenario.documents} documents, but texts, upserted, again are {landed}")
        return Run(
            contestant=contestant,
            scenario=scenario,
            documents_per_second=outcome.report["documents_per_second"],
            pipeline_seconds=outcome.report["seconds"],
            wall_seconds=round(outcome.wall_seconds, 3),
            cpu_seconds=round(outcome.cpu_seconds, 3),
            system_cpu_seconds=round(outcome.system_cpu_seconds, 3),
            peak_rss_bytes=outcome.peak_rss_bytes,
            openai_emulator_cpu_seconds=round(after["openai"] - before["openai"], 3),
            pinecone_emulator_cpu_seconds=round(after["pinecone"] - before["pinecone"], 3),
        )

    def _command(self, contestant: str, source: Path) -> list[str]:
        common = ["--source", str(source), "--batch-size", str(BATCH_SIZE), "--concurrency", str(self._concurrency)]
        if contestant != "millrace":
            mode = contestant.removeprefix("bare ")
            return [sys.executable, str(ROOT / "benchmarks/bare.py"), mode, "--index", INDEX, *common]
        providers = ["--embedder", "openai:text-embedding-3-small", "--store", f"pinecone:{INDEX}"]
        return [sys.executable, str(ROOT / "flows/ingest.py"), *providers, *common, "--job-id", "bench", "--json"]

    def _environment(self, openai: EmulatorProcess, pinecone: EmulatorProcess, work: Path) -> dict[str, str]:
        return {
            **environment_for(pinecone, work, self._prefect_url),
            "OPENAI_API_KEY": "sk-emulator",
            "OPENAI_BASE_URL": openai.base_url,
        }


def lines(runs: Iterable[Run], concurrency: int) -> list[Line]:
    """Medians by scenario and contestant. Runs over one document are the start-up, and no line of their own."""
    runs = list(runs)
    start_up = {name: _median(run.cpu_seconds for run in runs if _is(run, name, Scenario(1))) for name in CONTESTANTS}
    found = []
    for scenario in dict.fromkeys(run.scenario for run in runs if run.scenario.documents > 1):
        rates = {name: _median(r.documents_per_second for r in runs if _is(r, name, scenario)) for name in CONTESTANTS}
        for name in CONTESTANTS:
            own = [run for run in runs if _is(run, name, scenario)]
            cpu = _median(run.cpu_seconds for run in own) - start_up[name]
            latency = scenario.latency_seconds
            found.append(
                Line(
                    contestant=name,
                    scenario=scenario,
                    documents_per_second=rates[name],
                    wall_seconds=_median(run.wall_seconds for run in own),
                    cpu_microseconds_per_document=round(cpu / (scenario.documents - 1) * 1e6, 1),
                    peak_rss_bytes=int(_median(run.peak_rss_bytes for run in own)),
                    ratio_to_bare=round(rates[name] / rates[MEASURE], 3),
                    share_of_ideal=round(rates[name] * latency / concurrency / BATCH_SIZE, 3) if latency else None,
                )
            )
    return found


def _is(run: Run, contestant: str, scenario: Scenario) -> bool:
    return run.contestant == contestant and run.scenario == scenario


def _median(values: Iterable[float]) -> float:
    return round(statistics.median(values), 3)


def conditions(*, concurrency: int | list[int], runs: int) -> dict[str, Any]:
    """What the numbers hold for."""
    return {
        "cores": os.cpu_count(),
        "load_average_at_start": [round(value, 1) for value in os.getloadavg()],
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {name: version(name) for name in PACKAGES},
        "dimension": DIMENSION,
        "batch_size": BATCH_SIZE,
        "concurrency": concurrency,
        "runs": runs,
    }


def show(found: list[Line], held: dict[str, Any], runs: list[Run]) -> None:
    """Print the table, and what it holds for."""
    console = Console(width=None if sys.stdout.isatty() else 140)
    for scenario in dict.fromkeys(line.scenario for line in found):
        latencies = (f"{seconds * 1000:g} ms" for seconds in (scenario.latency_seconds, scenario.store_latency_seconds))
        title = f"{scenario.documents:,} documents, an answer takes {' (embed) and '.join(latencies)} (upsert)"
        table = Table(title=title, title_justify="left")
        table.add_column("")
        for name in ("documents/s", "to bare tuned", "of the ideal", "wall s", "CPU us/document", "peak MB"):
            table.add_column(name, justify="right")
        for line in (line for line in found if line.scenario == scenario):
            table.add_row(
                line.contestant,
                f"{line.documents_per_second:,.0f}",
                f"{line.ratio_to_bare:.0%}",
                "" if line.share_of_ideal is None else f"{line.share_of_ideal:.1%}",
                f"{line.wall_seconds:.1f}",
                f"{line.cpu_microseconds_per_document:.0f}",
                f"{line.peak_rss_bytes / 1e6:.0f}",
            )
        console.print(table)
    for name in CONTESTANTS:
        own = [run for run in runs if _is(run, name, Scenario(1))]
        wall, cpu = _median(run.wall_seconds for run in own), _median(run.cpu_seconds for run in own)
        console.print(f"start-up and end, {name}: {wall:.1f} s, {cpu:.1f} s of CPU (not in CPU us/document)")
    console.print(", ".join(f"{name} {value}" for name, value in held.items()))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, nargs="+", default=[40_000, 60_000], help="one, or one a latency")
    parser.add_argument("--latency", type=float, nargs="+", default=[0, 400], help="ms of an embedding request")
    parser.add_argument("--store-latency", type=float, nargs="+", default=[0, 100], help="ms of an upsert request")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--concurrency", type=int, default=10)
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"), help="where results go")
    parser.add_argument("--corpus", type=Path, default=Path(tempfile.gettempdir(), "millrace-corpus"))
    asked = parser.parse_args()
    for name in ("documents", "store_latency"):
        values = getattr(asked, name)
        if len(values) == 1:
            setattr(asked, name, values * len(asked.latency))
        elif len(values) != len(asked.latency):
            parser.error(f"--{name.replace('_', '-')}: one number, or one for each latency")
    if min(asked.documents) < 2 or asked.runs < 1:
        parser.error("--documents from 2, --runs from 1")
    return asked


def main() -> None:
    """Run everything, print the table, write the results."""
    asked = parse()
    held = conditions(concurrency=asked.concurrency, runs=asked.runs)
    scenarios = [
        Scenario(documents, latency / 1000, store_latency / 1000)
        for documents, latency, store_latency in zip(asked.documents, asked.latency, asked.store_latency, strict=True)
    ]
    for scenario in scenarios:
        corpus(asked.corpus, scenario.documents)
    runs: list[Run] = []
    folder = Path(tempfile.mkdtemp(prefix="millrace-benchmark-"))
    try:
        with prefect_server(folder) as url:
            bench = Bench(folder, asked.corpus, url, asked.concurrency)
            for _ in range(asked.runs):
                for scenario in (Scenario(1), *scenarios):
                    for contestant in CONTESTANTS:
                        runs.append(bench.run(contestant, scenario))
                        sys.stderr.write(f"{msgspec.json.encode(runs[-1]).decode()}\n")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    found = lines(runs, asked.concurrency)
    results = {"conditions": held, "medians": found, "runs": runs}
    asked.json.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=2) + b"\n")
    show(found, held, runs)


if __name__ == "__main__":
    main()

"""A process under measurement: what it finds in its environment, what it reports at its end, and what it took."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import psutil

from tests.emulators.process import EmulatorProcess


class Outcome(msgspec.Struct, frozen=True):
    """The report that a process printed last, and what the kernel counted.

    CPU is the process's own and that of the children it has waited for; the peak is of the largest of them.
    """

    report: dict[str, Any]
    wall_seconds: float
    user_cpu_seconds: float
    system_cpu_seconds: float
    peak_rss_bytes: int

    @property
    def cpu_seconds(self) -> float:
        """User and system."""
        return self.user_cpu_seconds + self.system_cpu_seconds


def measured(command: list[str], environment: Mapping[str, str], work: Path, *, within_seconds: float) -> Outcome:
    """Run a command in the folder ``work``, killed after ``within_seconds``.

    Raises:
        RuntimeError: it did not exit with 0.
    """
    with (work / "out").open("w+b") as out, (work / "err").open("w+b") as err:
        started = time.monotonic()
        process = subprocess.Popen(command, stdout=out, stderr=err, env=environment, cwd=work)
        give_up = threading.Timer(within_seconds, process.kill)
        give_up.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        finally:
            give_up.cancel()
        wall = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if process.returncode != 0:
            raise RuntimeError(f"{command} ended with {process.returncode}: {err.read().decode()[-2000:]}")
        report: dict[str, Any] = msgspec.json.decode(out.read().splitlines()[-1])
    return Outcome(
        report=report,
        wall_seconds=wall,
        user_cpu_seconds=usage.ru_utime,
        system_cpu_seconds=usage.ru_stime,
        peak_rss_bytes=usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    )


def environment_for(pinecone: EmulatorProcess, work: Path, prefect_url: str) -> dict[str, str]:
    """What a run finds in its environment: the store, the server, and folders in ``work`` for all that it leaves."""
    return {
        **without_prefect(os.environ),
        "PINECONE_API_KEY": "pc-emulator",
        "PINECONE_CONTROLLER_HOST": pinecone.base_url,
        "PREFECT_API_URL": prefect_url,
        "PREFECT_HOME": f"{work}/prefect",
        "PREFECT_RESULTS_LOCAL_STORAGE_PATH": f"{work}/checkpoints",
    }


def emulators_cpu() -> dict[str, float]:
    """CPU seconds, user and system, of every emulator that this process has started, by its name."""
    seconds = {}
    for child in psutil.Process().children():
        arguments = child.cmdline()
        if "tests.emulators" in arguments:
            times = child.cpu_times()
            seconds[arguments[arguments.index("tests.emulators") + 1]] = times.user + times.system
    return seconds


def without_prefect(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment less Prefect's settings."""
    return {name: value for name, value in environment.items() if not name.startswith("PREFECT_")}

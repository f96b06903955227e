"""The command lines as processes of their own, as a person or a scheduler starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson
from prefect.settings import get_current_settings

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Finished:
    """What a command left: exit status, standard output and error."""

    status: int
    stdout: str
    stderr: str

    @property
    def report(self) -> dict[str, Any]:
        """The last line of standard output of a run with ``--json``."""
        report: dict[str, Any] = orjson.loads(self.stdout.splitlines()[-1])
        return report


class Command:
    """Starts ``python flows/NAME.py`` in a folder, with an environment that has no keys but those given.

    Without ``api_url`` a run starts a Prefect server of its own.
    """

    def __init__(self, folder: Path, api_url: str | None = None, **environment: str) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}
        kept.pop("PREFECT_API_URL", None)
        self.folder = folder
        self.environment = {
            **kept,
            "PYTHONPATH": str(ROOT),
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(folder / "results"),
            **({} if api_url is None else {"PREFECT_API_URL": api_url}),
            **environment,
        }

    def start(self, *arguments: object, flow: str = "ingest", stdin: bytes | None = None) -> subprocess.Popen[bytes]:
        """Start it; the caller waits for it."""
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "flows" / f"{flow}.py"), *map(str, arguments)],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        if stdin is not None:
            assert process.stdin is not None
            process.stdin.write(stdin)
            process.stdin.close()
            process.stdin = None
        return process

    def run(self, *arguments: object, flow: str = "ingest", stdin: bytes | None = None) -> Finished:
        """Start it and wait for its end."""
        return finish(self.start(*arguments, flow=flow, stdin=stdin))


def finish(process: subprocess.Popen[bytes], timeout_seconds: float = 240) -> Finished:
    """Wait for a command's end; one that does not end in time is killed, and the test fails."""
    try:
        stdout, stderr = process.communicate(timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        stdout, stderr = process.communicate()
        raise AssertionError(f"the command did not end in time:\n{stderr.decode()}") from None
    return Finished(process.returncode, stdout.decode(), stderr.decode())


def server_url() -> str:
    """The API of the Prefect server that the tests of this process use."""
    url = get_current_settings().api.url
    assert url is not None
    return str(url)


def delete_limits() -> None:
    """Delete every concurrency limit of that server, which does not look for leases that ran out."""
    with httpx.Client(base_url=f"{server_url()}/", timeout=30) as api:
        for limit in api.post("v2/concurrency_limits/filter", json={}).raise_for_status().json():
            api.delete(f"v2/concurrency_limits/{limit['id']}")

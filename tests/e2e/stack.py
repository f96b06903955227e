"""What a person runs: a Prefect server with its UI, process workers, the deployments of prefect.yaml, and providers."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx

from tests.emulators.process import ROOT, EmulatorProcess

T = TypeVar("T")
BIN = Path(sys.executable).parent
KEYS = {"OPENAI_API_KEY": "sk-emulator", "PINECONE_API_KEY": "pc-emulator"}
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}

SERVER_SETTINGS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
}


def until(what: str, found: Callable[[], T | None], timeout_seconds: float = 60.0) -> T:
    """The first answer that is not None, asked for again and again; TimeoutError when there is none in time."""
    pause, deadline = threading.Event(), time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        if (answer := found()) is not None:
            return answer
        pause.wait(0.2)
    raise TimeoutError(f"waited {timeout_seconds:.0f} s for {what}")


class Stack:
    """Everything in one folder. The deployments' working directory is that folder too, not the repository."""

    def __init__(self, folder: Path, openai: EmulatorProcess, pinecone: EmulatorProcess) -> None:
        port = _free_port()
        self.folder = folder
        self.openai = openai
        self.pinecone = pinecone
        self.ui = f"http://127.0.0.1:{port}"
        self.api = httpx.Client(base_url=f"{self.ui}/api", timeout=60)
        self._port = port
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        self.environment = {
            **kept,
            **SERVER_SETTINGS,
            **KEYS,
            "OPENAI_BASE_URL": openai.base_url,
            "PINECONE_CONTROLLER_HOST": pinecone.base_url,
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PWD": str(folder),
            "PYTHONPATH": str(ROOT),
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_API_URL": f"{self.ui}/api",
            "PREFECT_SERVER_UI_API_URL": f"{self.ui}/api",
            "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(folder / "ui"),
        }
        for name in ("prefect.yaml", "pyproject.toml"):
            shutil.copy(ROOT / name, folder)

    @contextmanager
    def serving(self) -> Iterator[None]:
        """The server, prepared as docs/deploying.md says: pool, automation, deployments."""
        with self.process("prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self._port)):
            until("the server", self._is_healthy, 120)
            self.command(sys.executable, "-m", "flows.prepare_server", "--limit", "millrace-openai=10")
            self.command("prefect", "--no-prompt", "deploy", "--all")
            yield

    def worker(self, name: str) -> AbstractContextManager[subprocess.Popen[bytes]]:
        """A process worker of the deployments' pool."""
        return self.process("prefect", "worker", "start", "--pool", "millrace", "--name", name)

    @contextmanager
    def process(self, *command: str) -> Iterator[subprocess.Popen[bytes]]:
        """A process in a session of its own, ended with all that it started."""
        log = self.folder / f"{command[1]}-{time.monotonic_ns()}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=out, stderr=out, start_new_session=True
            )
            try:
                yield process
            finally:
                end(process)

    def command(self, *command: str) -> str:
        """Run a command to its end; its output."""
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def script(self, text: str) -> str:
        """Run a script as a person who copied it does; its output."""
        return self.command(sys.executable, "-c", text)

    # The API, as the UI and scripts use it

    def post(self, path: str, body: Any) -> Any:
        """POST, and what is answered."""
        response = self._answer("POST", path, json=body)
        return response.json() if response.content else None

    def get(self, path: str) -> dict[str, Any]:
        """GET, and what is answered."""
        answer: dict[str, Any] = self._answer("GET", path).json()
        return answer

    def patch(self, path: str, body: Any) -> None:
        """PATCH, and be obeyed."""
        self._answer("PATCH", path, json=body)

    def deployment(self, name: str) -> dict[str, Any]:
        """A deployment as the server knows it."""
        return self.get(f"/deployments/name/{name}")

    def start(self, deployment: str, **parameters: Any) -> str:
        """Start a run of a deployment; its id."""
        run = self.post(f"/deployments/{self.deployment(deployment)['id']}/create_flow_run", {"parameters": parameters})
        return str(run["id"])

    def run(self, run_id: str) -> dict[str, Any]:
        """A flow run."""
        return self.get(f"/flow_runs/{run_id}")

    def runs_of(self, deployment: str, *types: str) -> list[dict[str, Any]]:
        """The runs of a deployment in states of these types, or in any; the first to start first."""
        query = {
            "flow_runs": {"state": {"type": {"any_": list(types)}}} if types else {},
            "deployments": {"id": {"any_": [self.deployment(deployment)["id"]]}},
            "sort": "START_TIME_ASC",
        }
        found: list[dict[str, Any]] = self.post("/flow_runs/filter", query)
        return found

    def until_state(self, run_id: str, *types: str, attempt: int = 0, timeout_seconds: float = 90.0) -> dict[str, Any]:
        """Wait until a run is in a state of one of these types, in this attempt; another final state is a failure."""

        def arrived() -> dict[str, Any] | None:
            run = self.run(run_id)
            if run["run_count"] < attempt:
                return None
            if run["state"]["type"] in FINAL - set(types):
                raise AssertionError(f"the run ended as {run['state']}")
            return run if run["state"]["type"] in types else None

        return until(f"{types} of run {run_id}", arrived, timeout_seconds)

    def set_state(self, run_id: str, **state: Any) -> Any:
        """Propose a state; the server's answer."""
        return self.post(f"/flow_runs/{run_id}/set_state", {"state": state, "force": False})

    def retry(self, run_id: str) -> None:
        """What the UI's button proposes."""
        answer = self.set_state(run_id, type="SCHEDULED", name="AwaitingRetry", message="Retry from the UI")
        assert answer["status"] == "ACCEPT", answer

    def events(self, name: str, job_id: str) -> list[dict[str, Any]]:
        """The events of this name of a job, the newest first."""
        query = {"filter": {"event": {"name": [name]}, "resource": {"id": [f"millrace.job.{job_id}"]}}}
        found: list[dict[str, Any]] = self.post("/events/filter", query)["events"]
        return found

    def until_event(self, name: str, job_id: str) -> dict[str, Any]:
        """Wait for an event of a job; the newest."""
        return until(f"{name} of {job_id}", lambda: next(iter(self.events(name, job_id)), None))

    def logs(self, run_id: str) -> list[dict[str, Any]]:
        """A run's log lines, the oldest first."""
        query = {"logs": {"flow_run_id": {"any_": [run_id]}}, "sort": "TIMESTAMP_ASC", "limit": 200}
        found: list[dict[str, Any]] = self.post("/logs/filter", query)
        return found

    def artifacts(self, run_id: str) -> dict[str, dict[str, Any]]:
        """A run's artifacts by their key."""
        found = self.post("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run_id]}}})
        return {artifact["key"]: artifact for artifact in found if artifact["key"]}

    def task_runs(self, run_id: str) -> list[str]:
        """The names of a run's task runs, in the order of their start."""
        query = {"flow_runs": {"id": {"any_": [run_id]}}, "sort": "EXPECTED_START_TIME_ASC"}
        return [run["name"] for run in self.post("/task_runs/filter", query)]

    def _answer(self, method: str, path: str, **request: Any) -> httpx.Response:
        """What a patient client gets: on SQLite a server that is writing answers 503 Service Unavailable."""

        def answered() -> httpx.Response | None:
            response = self.api.request(method, path, **request)
            return None if response.status_code == httpx.codes.SERVICE_UNAVAILABLE else response

        return until(f"an answer to {method} {path}", answered).raise_for_status()

    def _is_healthy(self) -> bool | None:
        try:
            return self.api.get("/health").is_success or None
        except httpx.HTTPError:
            return None


def end(process: subprocess.Popen[bytes], *signals: int) -> None:
    """End a process and all of its session."""
    for number in signals or (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, number)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                continue
    process.wait(20)


def children_of(pid: int) -> Sequence[int]:
    """The processes under one, the nearest first."""
    import psutil  # noqa: PLC0415 - only for tests that kill

    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port

"""The Prefect that a run from the command line talks to: the configured server, or one of this process's own.

Prefect 3.8.8 would start one by itself, but lets it print tracebacks into the terminal when it is stopped. This one
writes to a log file, has the settings that a run needs, and is stopped only when what it was told is recorded.
"""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO

import httpx
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.settings import get_current_settings, temporary_settings

from tasks.errors import UsageError

START_TIMEOUT_SECONDS = 90
"""A first start migrates a new database: 8 seconds on a quiet machine, 24 seconds were seen on a busy one."""
SETTLE_TIMEOUT_SECONDS = 10
_SETTLE_POLL_SECONDS = 0.4
_SETTLED_POLLS = 3  # longer together than the recorder's flush interval of a second

LOCAL_DEFAULTS = {
    "results.local_storage_path": "data/checkpoints",
    "server.analytics_enabled": False,
    "server.concurrency.lease_storage": "prefect.server.concurrency.lease_storage.filesystem",
    "server.services.task_run_recorder.batch_size": 200,
    "server.services.task_run_recorder.read_batch_size": 200,
    "server.services.task_run_recorder.flush_interval": 1,
}
"""The same as ``[tool.prefect]`` in pyproject.toml, which Prefect only reads from the working directory."""


@contextmanager
def prefect_server() -> Iterator[None]:
    """Talk to the configured Prefect server for the length of the block, or to one started for it.

    Raises:
        UsageError: the configured server does not answer, or a local one did not start.
    """
    with temporary_settings(set_defaults=LOCAL_DEFAULTS) as settings:
        if settings.api.url is not None:
            check_answers(settings.api.url)
            yield
            return
        with _started() as url, temporary_settings(updates={"api.url": url}):
            try:
                yield
            finally:
                _settle(url)


def check_answers(url: str) -> None:
    """Raise a UsageError that says what to do where no Prefect server answers at ``url``."""
    try:
        answers = httpx.get(f"{url.rstrip('/')}/health", timeout=10).is_success
    except httpx.HTTPError:
        answers = False
    if not answers:
        raise UsageError(
            f"no Prefect server answers at PREFECT_API_URL={httpx.URL(url).copy_with(userinfo=b'')}: "
            "start it with `prefect server start`, or unset PREFECT_API_URL to use one of the run's own"
        )


@contextmanager
def _started() -> Iterator[str]:
    port = _free_port()
    environment = {
        **os.environ,
        **get_current_settings().to_environment_variables(exclude_unset=True),
        "PREFECT_UI_ENABLED": "0",
    }
    url = f"http://127.0.0.1:{port}/api"
    with tempfile.NamedTemporaryFile("w+b", prefix="millrace-server-", suffix=".log") as log, ExitStack() as ending:
        with _one_start_at_a_time():
            server = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-m", "flows.server_process", str(port)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
            ending.callback(_stop, server)
            _wait_until_healthy(server, url, log)
        yield url


@contextmanager
def _one_start_at_a_time() -> Iterator[None]:
    """Two servers that make one new database at the same moment break each other's migrations."""
    home = get_current_settings().home
    home.mkdir(parents=True, exist_ok=True)
    with (home / "millrace-server.lock").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # let go when the file is closed, also by a kill
        yield


def _wait_until_healthy(server: subprocess.Popen[bytes], url: str, log: IO[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if httpx.get(f"{url}/health", timeout=5).is_success:
                return
        except httpx.HTTPError:
            time.sleep(0.1)
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
    raise UsageError(f"the local Prefect server did not start: {lines[-1]}")


def _stop(server: subprocess.Popen[bytes]) -> None:
    assert server.stdin is not None
    server.stdin.close()
    try:
        server.wait(10)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _settle(url: str) -> None:
    """Send what is unsent, then wait until the server's recorder has written it: its counts no longer change."""
    EventsWorker.drain_all(SETTLE_TIMEOUT_SECONDS, at_exit=False)
    APILogWorker.drain_all(SETTLE_TIMEOUT_SECONDS, at_exit=False)
    deadline = time.monotonic() + SETTLE_TIMEOUT_SECONDS
    unchanged, before = 0, None
    while unchanged < _SETTLED_POLLS and time.monotonic() < deadline:
        now = [_count(url, states) for states in (["COMPLETED", "FAILED", "CRASHED", "CANCELLED"], ["RUNNING"])]
        unchanged, before = (unchanged + 1 if now == before else 0), now
        time.sleep(_SETTLE_POLL_SECONDS)


def _count(url: str, states: list[str]) -> int | None:
    try:
        answer = httpx.post(
            f"{url}/task_runs/count", json={"task_runs": {"state": {"type": {"any_": states}}}}, timeout=5
        )
        return int(answer.text) if answer.is_success else None
    except httpx.HTTPError:
        return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port

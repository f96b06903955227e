"""An emulator as a process of its own, driven over HTTP: for benchmarks, and for tests that kill what calls it."""

from __future__ import annotations

import subprocess
import sys
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode, urlsplit

import orjson

ROOT = Path(__file__).parent.parent.parent


class EmulatorProcess:
    """``python -m tests.emulators`` with these arguments, from entering to leaving; its methods answer the counters.

    ``base_url`` is what the SDK takes: OpenAI's ``base_url``, Pinecone's ``host``.
    """

    def __init__(self, *arguments: str) -> None:
        self._command = [sys.executable, "-m", "tests.emulators", *arguments]
        self._process: subprocess.Popen[str] | None = None
        self.base_url = ""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert self._process.stdout is not None
        self.base_url = self._process.stdout.readline().strip()
        if not self.base_url:
            self.stop()
            raise RuntimeError(f"the emulator did not start: {self._command}")
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> int | None:
        """End the process with SIGTERM; its exit code, 0 when it ended in order."""
        process, self._process = self._process, None
        if process is None:
            return None
        with process:
            process.terminate()
        return process.returncode

    def state(self) -> dict[str, Any]:
        """The counters."""
        return drive(self.base_url, "state")

    def set_faults(self, **faults: Any) -> dict[str, Any]:
        """Set the faults, by the fields of `Faults`."""
        return drive(self.base_url, "faults", faults)

    def hold(self, *, after: int = 0, when: str = "before") -> dict[str, Any]:
        """Close the gate after so many requests."""
        return drive(self.base_url, "hold", {"after": after, "when": when})

    def release(self, *, drop: bool = False) -> dict[str, Any]:
        """Open the gate."""
        return drive(self.base_url, "release", {"drop": drop})

    def reset(self) -> dict[str, Any]:
        """Set the counters to zero."""
        return drive(self.base_url, "reset", {})

    def until(self, counter: str, at_least: int, timeout_seconds: float = 30.0) -> dict[str, Any]:
        """Wait until a counter has come so far; TimeoutError when it does not in time."""
        query = urlencode({"counter": counter, "at_least": at_least, "timeout": timeout_seconds})
        return drive(self.base_url, f"until?{query}")


def drive(url: str, verb: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Ask a control path of the emulator at ``url``: GET, or POST where there is a body.

    Raises:
        TimeoutError: ``until`` waited in vain.
        ValueError: anything else that is refused.
    """
    connection = HTTPConnection(urlsplit(url).netloc)
    content = None if body is None else orjson.dumps(body)
    try:
        connection.request("GET" if body is None else "POST", f"/__emulator__/{verb}", content)
        response = connection.getresponse()
        answer: dict[str, Any] = orjson.loads(response.read())
    finally:
        connection.close()
    if response.status != 200:
        raise (TimeoutError if response.status == 408 else ValueError)(answer)
    return answer

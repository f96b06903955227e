"""What a run asks of the Prefect API: requests by kind, task runs and log lines, for Prefect Cloud's budget.

``python benchmarks/prefect_requests.py`` stands up a Prefect server that counts what it is asked, OpenAI's and
Pinecone's emulators, and runs 100,000 documents from the command line against them. Events travel over one websocket;
its messages are counted too.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.corpus import corpus  # noqa: E402 - run as a script, the path above comes first
from benchmarks.prefect_server import SERVER_SETTINGS  # noqa: E402
from tests.emulators.process import EmulatorProcess  # noqa: E402

RUN_SECONDS = 560
START_POLLS = 600
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Counting:
    """An ASGI application that counts what another one is asked: by method and path, ids left out."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.asked: Counter[str] = Counter()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass on, and count."""
        if scope["type"] not in {"http", "websocket"}:
            await self._inner(scope, receive, send)
            return
        path = _ID.sub("{id}", scope["path"])
        if scope["type"] == "http":
            self.asked[f"{scope['method']} {path}"] += 1
            await self._inner(scope, receive, send)
            return

        async def counted() -> Message:
            message = await receive()
            if message["type"] == "websocket.receive":
                self.asked[f"message {path}"] += 1
            return message

        await self._inner(scope, counted, send)


@contextmanager
def counting_server(folder: Path, port: int) -> Iterator[Counting]:
    """A Prefect server of its own in this process."""
    os.environ |= SERVER_SETTINGS | {"PREFECT_HOME": str(folder / "prefect"), "PREFECT_UI_ENABLED": "0"}
    from prefect.server.api.server import create_app  # noqa: PLC0415 - reads its settings when it is imported

    counting = Counting(create_app())
    server = uvicorn.Server(uvicorn.Config(counting, port=port, log_level="error", lifespan="on"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    pause = threading.Event()
    for _ in range(START_POLLS):
        if server.started:
            break
        pause.wait(0.2)
    counting.asked.clear()
    try:
        yield counting
    finally:
        server.should_exit = True
        thread.join(30)


def ingest(source: Path, folder: Path, api: str, openai: EmulatorProcess, pinecone: EmulatorProcess) -> None:
    """One run, as a process."""
    environment = os.environ | {
        "PREFECT_API_URL": api,
        "OPENAI_API_KEY": "sk-emulator",
        "OPENAI_BASE_URL": openai.base_url,
        "PINECONE_API_KEY": "pc-emulator",
        "PINECONE_CONTROLLER_HOST": pinecone.base_url,
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, str(ROOT / "flows/ingest.py"), "--source", str(source), "--job-id", "counted"]
    command += ["--embedder", "openai:text-embedding-3-small:64", "--store", "pinecone:bench"]
    subprocess.run(command, cwd=folder, env=environment, timeout=RUN_SECONDS, check=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--port", type=int, default=4321)
    asked = parser.parse_args()
    api = f"http://127.0.0.1:{asked.port}/api"
    with (
        tempfile.TemporaryDirectory() as name,
        counting_server(Path(name), asked.port) as counting,
        EmulatorProcess("openai") as openai,
        EmulatorProcess("pinecone", "--index", "bench:64", "--drop-values") as pinecone,
    ):
        folder = Path(name)
        ingest(corpus(folder, asked.documents), folder, api, openai, pinecone)
        counts = counting.asked.copy()
        lines = httpx.post(f"{api}/logs/filter", json={"limit": 200}, timeout=30).json()
        task_runs = httpx.post(f"{api}/task_runs/count", json={}, timeout=30).json()
    table = Table("asked", "times", title=f"{asked.documents:,} documents")
    for kind, times in counts.most_common():
        table.add_row(kind, f"{times:,}")
    requests = sum(times for kind, times in counts.items() if not kind.startswith("message"))
    table.add_row("requests", f"{requests:,}")
    table.add_row("task runs", f"{task_runs:,}")
    table.add_row("log lines", f"{len(lines):,}")
    Console().print(table)


if __name__ == "__main__":
    main()

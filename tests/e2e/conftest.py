"""One server, one worker and two providers for all end-to-end tests of a session."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.browser import Screen, chromium, screen
from tests.e2e.stack import Stack
from tests.emulators.process import EmulatorProcess

Write = Callable[[str, int], Path]


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A prepared server with its deployments; no worker yet."""
    with (
        EmulatorProcess("openai", "--latency", "0.05") as openai,
        EmulatorProcess("pinecone", "--index", "docs:1536") as pinecone,
    ):
        stack = Stack(tmp_path_factory.mktemp("stack"), openai, pinecone)
        with stack.serving():
            yield stack


@pytest.fixture(scope="session")
def worker(stack: Stack) -> Iterator[subprocess.Popen[bytes]]:
    """The process worker that serves all tests."""
    with stack.worker("everyday") as process:
        yield process


@pytest.fixture(autouse=True)
def providers(stack: Stack) -> Iterator[None]:
    """Counters at zero before, no fault and no held request after each test."""
    stack.openai.reset()
    stack.pinecone.reset()
    yield
    for emulator in (stack.openai, stack.pinecone):
        emulator.set_faults()
        emulator.release(drop=True)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a source of so many documents, each with a text of its own."""

    def write(name: str, documents: int) -> Path:
        lines = [json.dumps({"id": f"d{i}", "text": f"{name}: the text of document {i}"}) for i in range(documents)]
        file = tmp_path / f"{name}.jsonl"
        file.write_text("\n".join(lines) + "\n")
        return file

    return write


@pytest.fixture
def browser(stack: Stack, tmp_path: Path) -> Iterator[Screen]:
    """The UI in a browser; pictures go to MILLRACE_SCREENSHOTS, else into the test's folder."""
    if (executable := chromium()) is None:
        if os.environ.get("CI"):
            pytest.fail("Chromium is not installed: apt-get install chromium")
        pytest.skip("Chromium is not installed: apt-get install chromium")
    folder = Path(os.environ.get("MILLRACE_SCREENSHOTS", tmp_path / "screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    with screen(executable, stack.ui, folder) as page:
        yield page

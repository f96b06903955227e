"""`docs/adding-an-adapter.md`, followed to the letter in a copy of the project."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command import ROOT, server_url

pytestmark = [pytest.mark.cli]

PAGE = ROOT / "docs" / "adding-an-adapter.md"
BLOCK = re.compile(
    r"^<!-- (?P<verb>file|edit|run) ?(?P<path>\S*) -->\n```\w+\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL
)


def blocks() -> Iterator[tuple[str, str, str]]:
    """Every block of the page that does something: its verb, its file and its text."""
    for found in BLOCK.finditer(PAGE.read_text()):
        yield found["verb"], found["path"], found["body"]


def edit(file: Path, difference: str) -> None:
    """Replace the lines that stand there by the lines that are to stand there; they must be there, once."""
    lines = difference.splitlines(keepends=True)
    old = "".join(line[1:] or "\n" for line in lines if not line.startswith("+"))
    new = "".join(line[1:] or "\n" for line in lines if not line.startswith("-"))
    content = file.read_text()
    assert content.count(old) == 1, f"{file.name} has not exactly one place for:\n{old}"
    file.write_text(content.replace(old, new))


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The copy of the project, with all that the page adds."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("flows", "tasks", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    for verb, path, body in blocks():
        if verb == "file":
            assert not (folder / path).exists()
            (folder / path).write_text(body)
        elif verb == "edit":
            edit(folder / path, body)
    return folder


def run(command: str, folder: Path) -> str:
    """Run a line of the page there; what it printed."""
    program, *arguments = shlex.split(command)
    assert program == "python"
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder),
        "PREFECT_API_URL": server_url(),
        "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(folder / "results"),
    }
    ended = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ended.returncode == 0, f"{command}\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout


def test_every_block_of_the_page_is_followed() -> None:
    """One that has no word before it would be shown and never tried."""
    assert len(list(blocks())) == len(re.findall(r"^```\w+$", PAGE.read_text(), re.MULTILINE))


@pytest.mark.slow
def test_the_adapters_of_the_page_pass_their_contracts_and_run(followed: Path, prefect_server: None) -> None:
    """Line by line, as a reader would type them."""
    printed = [run(line, followed) for verb, _, body in blocks() if verb == "run" for line in body.splitlines()]
    store, _, found, embedder, _, misspelt = printed
    for contract in (store, embedder):
        assert re.search(r"\b\d\d passed", contract)
        assert "failed" not in contract
    assert "date" in found
    assert "fromisoformat" in misspelt

"""The README says what is there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def modules() -> set[str]:
    """Every module of both packages that says something."""
    files = (path for package in ("flows", "tasks") for path in (ROOT / package).rglob("*.py"))
    return {path.relative_to(ROOT).as_posix() for path in files if path.stat().st_size}


def test_the_map_has_one_line_for_each_file() -> None:
    """No more and no less."""
    lines = re.findall(r"^\| `((?:flows|tasks)/[\w/]+\.py)` \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(lines) == len(set(lines))
    assert set(lines) == modules()


def test_every_package_is_listed_by_hand() -> None:
    """Discovery would drop `tasks`."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {Path(module).parent.as_posix().replace("/", ".") for module in modules()}
    assert sorted(listed) == sorted(folders)


def test_its_pages_exist() -> None:
    """No link or mention leads nowhere."""
    named = set(re.findall(r"`((?:docs|benchmarks)/[\w./-]+)`", (ROOT / "README.md").read_text()))
    assert named
    assert not [page for page in named if not (ROOT / page).exists()]

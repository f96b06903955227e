"""Held files: each says that its maker lives, by a lock that ends with it however it ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def held_file(folder: Path, name: str) -> Iterator[int]:
    """A new file of this process for the length of the block; gives its descriptor, open for writing.

    Nobody sees it before it is locked. A killed process leaves it behind, unlocked.

    Raises:
        OSError: the folder cannot be written to.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path, unseen = folder / name, folder / f".{name}"
    file = os.open(unseen, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        unseen.rename(path)
        yield file
    finally:
        path.unlink(missing_ok=True)
        os.close(file)


def held_files(folder: Path) -> list[str]:
    """The names of those whose makers live, sorted; the others are deleted."""
    return [path.name for path in _seen(folder) if _is_held(path)]


def take_left_files(folder: Path) -> Iterator[bytes]:
    """The content of each file that a killed process left; each is given to one taker only, and deleted behind it."""
    for path in _seen(folder):
        with suppress(FileNotFoundError):
            file = os.open(path, os.O_RDWR)
            try:
                if try_lock(file):
                    yield os.pread(file, os.fstat(file).st_size, 0)
                    path.unlink(missing_ok=True)
            finally:
                os.close(file)


def try_lock(file: int) -> bool:
    """Lock an open file for this descriptor alone, unless somebody has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _seen(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except FileNotFoundError:
        return []


def _is_held(path: Path) -> bool:
    try:
        file = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        if is_left := try_lock(file):
            path.unlink(missing_ok=True)
        return not is_left
    finally:
        os.close(file)

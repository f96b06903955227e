"""The book of a run's leases: what a killed run of this machine held is given back by the next one."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

from tasks.limits.held_files import held_file, take_left_files

Note = Callable[[UUID], object]


@contextmanager
def lease_book(folder: Path) -> Iterator[Note]:
    """A book for the length of the block; what it gives writes a lease down. A run that is killed leaves its book.

    Raises:
        OSError: the folder cannot be written to.
    """
    with held_file(folder, f"{os.getpid()}-{secrets.token_hex(8)}") as book:
        yield lambda lease: os.write(book, f"{lease}\n".encode())


def left_leases(folder: Path) -> Iterator[UUID]:
    """All that killed runs wrote down; the books go. What is given back already may be among them."""
    for book in take_left_files(folder):
        for line in book.splitlines(keepends=True):
            if line.endswith(b"\n"):  # a torn line was the last one
                yield UUID(line.decode().strip())

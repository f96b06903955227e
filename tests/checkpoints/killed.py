"""The command line, killed at a named moment: ``python -m tests.checkpoints.killed MOMENT PLACE NTH OPTIONS...``.

The process ends itself with SIGKILL at the NTH time that MOMENT comes at PLACE. ``before``, ``half`` (half of the bytes
are in the temporary file) and ``after`` are of writes of checkpoints whose key contains PLACE, ``removed`` comes right
after one was deleted, ``sending`` and ``confirmed`` before and after a request to the store (of any PLACE).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.checkpoints import blobs
from tasks.records import EncodedRecord
from tasks.upsert.pinecone import PineconeStore


class Reaper:
    """Counts how often the moment came."""

    def __init__(self, moment: str, place: str, nth: int) -> None:
        self._moment = moment
        self._place = place
        self._left = nth

    def at(self, moment: str, place: str = "", last_words: Callable[[], object] = lambda: None) -> None:
        """Die where it is time; ``last_words`` are done before."""
        if moment != self._moment or self._place not in place:
            return
        self._left -= 1
        if not self._left:
            last_words()
            os.kill(os.getpid(), signal.SIGKILL)


def watch(reaper: Reaper) -> None:
    """Let the reaper see every write, every delete and every upsert request."""
    replace, remove, upsert = blobs._replace, blobs._remove, PineconeStore.upsert

    def replacing(path: Path, content: bytes, *, durable: bool) -> None:
        def write_half() -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(f".{path.name}.{'0' * 32}.tmp").write_bytes(content[: len(content) // 2])

        reaper.at("before", str(path))
        reaper.at("half", str(path), write_half)
        replace(path, content, durable=durable)
        reaper.at("after", str(path))

    def removing(path: Path) -> None:
        remove(path)
        reaper.at("removed", str(path))

    async def upserting(store: PineconeStore, records: Sequence[EncodedRecord]) -> Mapping[str, str]:
        reaper.at("sending")
        refused = await upsert(store, records)
        reaper.at("confirmed")
        return refused

    changed: dict[Any, tuple[str, Any]] = {blobs: ("_replace", replacing), PineconeStore: ("upsert", upserting)}
    for place, (name, function) in changed.items():
        setattr(place, name, function)
    blobs._remove = removing


def main() -> None:
    """Watch, then run as ``flows/ingest.py`` does."""
    moment, place, nth, *options = sys.argv[1:]
    watch(Reaper(moment, place, int(nth)))
    sys.argv = ["flows/ingest.py", *options]
    from flows.command_line import main as run  # noqa: PLC0415 - as the entry point does
    from flows.ingest import ingest  # noqa: PLC0415

    run(ingest, "python flows/ingest.py")


if __name__ == "__main__":
    main()

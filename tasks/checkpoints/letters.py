"""A job's dead letters on file: `dead_letters.jsonl` beside its record, replaced as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tasks.checkpoints import keys
from tasks.checkpoints.storage import CheckpointStorage
from tasks.dead_letters import FiledLetter, from_lines, to_lines


async def read_dead_letters(storage: CheckpointStorage, job: str, warn: Callable[[str], None]) -> list[FiledLetter]:
    """The letters, in the order of the source; none where there is no file."""
    content = await storage.blobs.read(keys.dead_letters_key(job))
    return [] if content is None else from_lines(content, warn)


async def write_dead_letters(storage: CheckpointStorage, job: str, letters: Iterable[FiledLetter]) -> None:
    """Replace the letters; without any there is no file."""
    if content := to_lines(letters):
        await storage.blobs.write(keys.dead_letters_key(job), content, durable=True)
    else:
        await storage.blobs.delete(keys.dead_letters_key(job))

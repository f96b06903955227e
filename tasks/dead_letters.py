"""The dead letters of a job: what was given up on, how often, since when. One JSON object a line.

A letter is known by its document's id, or by its position in the source where it has none. A document that is given up
on again adds an attempt; one that lands, is edited away or leaves the source takes its letter out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import msgspec
import numpy as np
from numpy.typing import NDArray

from tasks.fingerprints import Entries, hash_ids
from tasks.ledger import Ledger, newest
from tasks.records import DeadLetter, Document, Reason


class FiledLetter(msgspec.Struct, frozen=True, omit_defaults=True):
    """A dead letter as it is kept. Times are ISO 8601, UTC; ``attempts`` are runs that gave up on it."""

    id: str | None
    source: str
    position: int
    reason: Reason
    message: str
    attempts: int
    first_at: str
    last_at: str
    fingerprint: str = ""


Name = tuple[str, int]
"""The id and -1, or the source and the position."""

_decoder = msgspec.json.Decoder(FiledLetter)


def name_of(letter: FiledLetter | DeadLetter) -> Name:
    """What makes two letters the same one."""
    return (letter.source, letter.position) if letter.id is None else (letter.id, -1)


def merged(
    before: Iterable[FiledLetter], given_up: Iterable[DeadLetter], *, at: str, keeps: Callable[[FiledLetter], bool]
) -> list[FiledLetter]:
    """The letters after a run, in the source's order: what it gave up on, and of the others what ``keeps`` says."""
    known = {name_of(letter): letter for letter in before}
    again = {name_of(letter): _filed(letter, known.get(name_of(letter)), at) for letter in given_up}
    kept = {name: letter for name, letter in known.items() if name not in again and keeps(letter)}
    return sorted((kept | again).values(), key=lambda letter: (letter.source, letter.position))


def _filed(letter: DeadLetter, before: FiledLetter | None, at: str) -> FiledLetter:
    attempts, first_at = (before.attempts + 1, before.first_at) if before else (1, at)
    return FiledLetter(attempts=attempts, first_at=first_at, last_at=at, **msgspec.structs.asdict(letter))


def to_lines(letters: Iterable[FiledLetter]) -> bytes:
    """The file's content."""
    return b"".join(msgspec.json.encode(letter) + b"\n" for letter in letters)


def from_lines(content: bytes, warn: Callable[[str], None]) -> list[FiledLetter]:
    """The letters of a file; a line that is none is left out, which is said once."""
    letters, damaged = [], 0
    for line in content.splitlines():
        try:
            letters.append(_decoder.decode(line))
        except msgspec.MsgspecError:
            damaged += 1
    if damaged:
        warn(f"{damaged:,} lines of the dead letters cannot be read and are left out")
    return letters


class Choice:
    """Which documents a run concerns: all, all but known dead letters, or dead letters alone."""

    is_everything = True

    @property
    def leaves_documents(self) -> bool:
        """Whether there may be documents on which something was spent and which the run does not try."""
        return False

    def leaves(self, entries: Entries) -> NDArray[np.bool_]:
        """Which of these ledger entries are dead letters that the run was told not to try, shape (documents,)."""
        return np.zeros(len(entries), np.bool_)

    def concerns(self, document: Document) -> bool:
        """Whether the run is about this document at all."""
        del document
        return True

    def concerns_letter(self, letter: DeadLetter) -> bool:
        """Whether the run is about this item, which could not be read as a document."""
        del letter
        return True

    def keeps(self, letter: FiledLetter) -> bool:
        """Whether a letter stays on file although a whole run did not give up on its document."""
        del letter
        return False


class Skipping(Choice):
    """All documents but dead letters that have not changed since they were given up on.

    ``seen`` are the fingerprints of those that were left.
    """

    def __init__(self, letters: Collection[FiledLetter]) -> None:
        known = [letter for letter in letters if letter.id is not None and letter.fingerprint]
        self._ledger = Ledger(newest(entries_of(known)))
        self.seen: set[int] = set()

    @property
    def leaves_documents(self) -> bool:
        """See `Choice`."""
        return bool(self.seen)

    def leaves(self, entries: Entries) -> NDArray[np.bool_]:
        """See `Choice`."""
        left = self._ledger.holds(entries)
        self.seen.update(entries[left, 1].tolist())
        return left

    def keeps(self, letter: FiledLetter) -> bool:
        """Those that were left; one that left the source goes."""
        return bool(letter.fingerprint) and int(letter.fingerprint, 16) in self.seen


class Replaying(Choice):
    """The documents of these letters, whether they have changed since or not."""

    is_everything = False

    def __init__(self, letters: Collection[FiledLetter]) -> None:
        self.letters = len(letters)
        self._names = {name_of(letter) for letter in letters}

    @property
    def leaves_documents(self) -> bool:
        """See `Choice`."""
        return True

    def concerns(self, document: Document) -> bool:
        """By the id, or by the position where a line now reads as a document that did not before."""
        return (document.id, -1) in self._names or (document.source, document.position) in self._names

    def concerns_letter(self, letter: DeadLetter) -> bool:
        """See `Choice`."""
        return name_of(letter) in self._names

    def keeps(self, letter: FiledLetter) -> bool:
        """Those that were not sent."""
        return name_of(letter) not in self._names


def entries_of(letters: Collection[FiledLetter]) -> Entries:
    """The ledger entries that these letters' documents would have, shape (letters, 2)."""
    entries = np.empty((len(letters), 2), np.uint64)
    entries[:, 0] = hash_ids([letter.id or "" for letter in letters])[:, 0]
    entries[:, 1] = [int(letter.fingerprint or "0", 16) for letter in letters]
    return entries

"""A corpus for benchmarks: documents of about a kilobyte with a small metadata object, the same on every machine."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import orjson

TEXT_CHARACTERS = 1000
_VOCABULARY = 4096
_SEED = 17
_LANGUAGES = ("en", "de", "fr", "es")


def corpus(folder: Path, documents: int) -> Path:
    """The JSONL file of so many documents in ``folder``, written there when it is missing.

    Document ``i`` is the same in every size, so a smaller corpus is the beginning of a larger one.
    """
    file = folder / f"corpus-{documents}.jsonl"
    if file.exists():
        return file
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".part")
    with unfinished.open("wb") as out:
        out.writelines(_lines(documents))
    unfinished.replace(file)
    return file


def _lines(documents: int) -> Iterator[bytes]:
    chance = random.Random(_SEED)
    words = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(2, 10))) for _ in range(_VOCABULARY)]
    for number in range(documents):
        text = " ".join(chance.choices(words, k=TEXT_CHARACTERS // 7))
        metadata = {"page": number % 97, "language": _LANGUAGES[number % 4], "topic": words[number % 50]}
        document = {"id": f"document-{number:08}", "text": f"{number} {text}", "metadata": metadata}
        yield orjson.dumps(document, option=orjson.OPT_APPEND_NEWLINE)

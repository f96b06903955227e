"""Model tokens where nothing counts them exactly: a bound that costs nothing."""

from __future__ import annotations


def most_tokens(text: str) -> int:
    """UTF-8 bytes: an upper bound, as a byte-level model token covers at least one byte."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))

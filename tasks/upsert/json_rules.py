"""The rules of every store that keeps a document's metadata as JSON."""

from __future__ import annotations

from typing import Any

import orjson

from tasks.records import Document


def json_text(metadata: dict[str, Any]) -> bytes:
    """Metadata as JSON, keys sorted: the same metadata is the same bytes.

    Raises:
        TypeError: a key that is no string, an integer beyond 64 bits, an invalid string, a value that JSON has not.
    """
    return orjson.dumps(metadata, option=orjson.OPT_SORT_KEYS)


def json_refusal(document: Document, *, keep_text: bool) -> str | None:
    """Why this document cannot be kept as valid Unicode and JSON that reads back as it was, or None.

    The message holds nothing of the document.
    """
    if not document.id:
        return "id is empty"
    try:
        document.id.encode()
        if keep_text:
            document.text.encode()
        if orjson.loads(json_text(document.metadata)) != document.metadata:
            return "metadata does not survive JSON: a number that is not finite, or a value that JSON does not have"
    except UnicodeEncodeError:
        return "id or text is not valid Unicode"
    except TypeError:
        return "metadata does not fit JSON: a key that is no string, an integer beyond 64 bits, or an invalid string"
    return None

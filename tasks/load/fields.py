"""Which fields of an item make a document, and when they do not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from tasks.records import DeadLetter, Document, Reason
from tasks.settings import SourceSettings

METADATA_FIELD = "metadata"
NOT_UTF8 = "not valid UTF-8"


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of one file's items. ``metadata`` is empty where the format's default holds."""

    id: str
    text: str
    metadata: tuple[str, ...]
    source: str

    @classmethod
    def of(cls, settings: SourceSettings, source: str) -> Self:
        """The fields that the settings name, for the file ``source``."""
        return cls(settings.id_field, settings.text_field, settings.metadata_fields, source)

    @property
    def object_field(self) -> str | None:
        """The field whose object is the metadata; None where fields are named one by one or the name is taken."""
        return None if self.metadata or METADATA_FIELD in (self.id, self.text) else METADATA_FIELD

    def from_object(self, item: Any, position: int) -> Document | DeadLetter:
        """The document of a decoded JSON value; its metadata is the named fields, or the object under `metadata`."""
        if not isinstance(item, dict):
            return self.refuse(None, position, "not a JSON object")
        metadata: Any = {name: item[name] for name in self.metadata if item.get(name) is not None}
        if self.object_field is not None:
            metadata = item.get(self.object_field)
        return self.document(item.get(self.id), item.get(self.text), {} if metadata is None else metadata, position)

    def document(self, id_value: Any, text: Any, metadata: Any, position: int) -> Document | DeadLetter:
        """A document where every field is as it must be, else a dead letter that names the first field that is not."""
        document_id = identify(id_value)
        if document_id is None:
            return self.refuse(None, position, _id_fault(self.id, id_value))
        if not isinstance(text, str):
            return self.refuse(document_id, position, _fault(self.text, text, "a string"))
        if not text or text.isspace():
            return self.refuse(document_id, position, f"empty text in field {self.text!r}")
        if not isinstance(metadata, dict):
            return self.refuse(document_id, position, _fault(METADATA_FIELD, metadata, "an object"))
        return Document(document_id, text, metadata, self.source, position)

    def refuse(self, document_id: str | None, position: int, message: str) -> DeadLetter:
        """An item that was read but breaks a rule."""
        return DeadLetter(document_id, self.source, position, Reason.INVALID, message)

    def malformed(self, position: int, message: str) -> DeadLetter:
        """An item that could not be read."""
        return DeadLetter(None, self.source, position, Reason.MALFORMED, message)


def identify(value: Any) -> str | None:
    """The id that a value stands for: a string as it is, a whole number in digits, None for anything else."""
    if type(value) is str:
        return value or None
    return str(value) if type(value) is int else None


def id_of(item: Any, field: str) -> str | None:
    """The id of a decoded JSON value, None where there is none."""
    return identify(item.get(field)) if isinstance(item, Mapping) else None


def _id_fault(field: str, value: Any) -> str:
    if value == "":
        return f"empty id in field {field!r}"
    return _fault(field, value, "a string or a whole number")


def _fault(field: str, value: Any, wanted: str) -> str:
    if value is None:
        return f"field {field!r} is missing or null"
    return f"field {field!r} must be {wanted}, not {type(value).__name__}"

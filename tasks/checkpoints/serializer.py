"""The one serializer of results: plain JSON of four known records, under a digest. Nothing is ever unpickled."""

from __future__ import annotations

from hashlib import blake2b

import msgspec
from prefect.serializers import Serializer
from pydantic import Field

from tasks.records import EmbedRecord, JobRecord, LedgerHead, Receipt

CheckpointRecord = Receipt | EmbedRecord | LedgerHead | JobRecord

_decoder = msgspec.json.Decoder(CheckpointRecord)


class CheckpointSerializer(Serializer):
    """``<hex digest> <json>``; the tag inside says which record it is.

    Prefect hands over a failed task's exception too. A failure is never kept: it becomes nothing, which
    `CheckpointStorage` does not write.
    """

    type: str = Field(default="millrace-v1", frozen=True)

    def dumps(self, obj: CheckpointRecord | BaseException) -> bytes:
        """Encode a record."""
        if isinstance(obj, BaseException):
            return b""
        body = msgspec.json.encode(obj)
        return _digest(body) + b" " + body

    def loads(self, blob: bytes) -> CheckpointRecord:
        """Decode a record.

        Raises:
            ValueError: damaged, or not a record of this version.
        """
        digest, _, body = blob.partition(b" ")
        if digest != _digest(body):
            raise ValueError("the checkpoint's digest does not match")
        record: CheckpointRecord = _decoder.decode(body)
        return record


def _digest(body: bytes) -> bytes:
    return blake2b(body, digest_size=16).hexdigest().encode()

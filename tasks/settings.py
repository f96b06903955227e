"""Typed settings of one run: the `ingest` flow's parameters, and what they say of the source.

Everything here is public: it is stored and shown by Prefect, so a setting names where a key is found, never the key.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from tasks.provider_settings import EmbedderSettings, HashingSettings, LanceDBSettings, Settings, StoreSettings

JOB_ID_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
SAMPLE_SOURCE = "sample"
MAX_SEGMENTS_IN_FLIGHT = 128
"""Most segments between load and receipt at any time; the ledger's walk ends at a gap as wide as this."""


class SourceSettings(Settings):
    """Where documents come from, and which fields of an item make a document."""

    location: str = Field(SAMPLE_SOURCE, min_length=1, description="Path, glob, directory, `-`, URL, or `sample`.")
    json_path: str = Field("documents.item", description="Path of the array in a JSON file; `item`: at the top.")
    id_field: str = Field("id", min_length=1)
    text_field: str = Field("text", min_length=1)
    metadata_fields: tuple[str, ...] = Field((), description="Fields that become metadata; empty: the format's own.")


def parse_max_failed(value: Any) -> Any:
    """A count as it is, ``5%`` as the string that it is.

    Raises:
        ValueError: neither a whole number from 0 nor a percentage from 0% to 100%.
    """
    text = str(value).strip()
    if text.isdecimal():
        return int(text)
    if re.fullmatch(r"(100(\.0+)?|\d{1,2}(\.\d+)?)%", text):
        return text
    raise ValueError(f"{value!r} is neither a count of documents nor a percentage such as 5%")


_Count = Annotated[int, Field(ge=0, title="Count")]
_Percentage = Annotated[str, Field(pattern=r"^(\d+|(100(\.0+)?|\d{1,2}(\.\d+)?)%)$", title="Percentage")]
MaxFailed = Annotated[int | str, BeforeValidator(parse_max_failed, json_schema_input_type=_Count | _Percentage)]


def parse_job_id(value: str) -> str:
    """A job's id as it is; empty stands for the one made from source and store.

    Raises:
        ValueError: it would not be a safe name of a folder.
    """
    if value and not re.fullmatch(JOB_ID_PATTERN, value):
        raise ValueError("use up to 100 letters, digits, '.', '_' and '-', beginning with a letter or digit")
    return value


JobId = Annotated[
    str, AfterValidator(parse_job_id), WithJsonSchema({"type": "string", "pattern": rf"^({JOB_ID_PATTERN})?$"})
]
Name = Annotated[str, Field(min_length=1)]
BatchSize = Annotated[int, Field(ge=1, le=2048)]
CheckpointInterval = Annotated[int, Field(ge=1, le=1000)]
Concurrency = Annotated[int, Field(ge=1, le=1000)]
PerMinute = Annotated[int | None, Field(ge=1)]
Shards = Annotated[int, Field(ge=1, le=1000)]
Runner = Annotated[str, Field(pattern=r"^(local|dask(:.+)?)$")]
Percent = Annotated[float, Field(gt=0, le=100)]


class IngestSettings(Settings):
    """One run of the `ingest` flow, checked: the flow's parameters under their own names."""

    source: Name = SAMPLE_SOURCE
    job_id: JobId = ""
    embedder: EmbedderSettings = HashingSettings()
    store: StoreSettings = LanceDBSettings()
    batch_size: BatchSize = 100
    checkpoint_interval: CheckpointInterval = 10
    concurrency: Concurrency = 10
    rpm: PerMinute = None
    tpm: PerMinute = None
    max_failed: MaxFailed = 0
    max_memory_percent: Percent = 80
    no_text: bool = False
    create: bool = False
    skip_dead_letters: bool = False
    keep_vectors: bool = False
    rebuild: bool = False
    wait: bool = False
    shards: Shards = 1
    runner: Runner = "local"
    no_preflight: bool = False
    json_path: Name = "documents.item"
    id_field: Name = "id"
    text_field: Name = "text"
    metadata_fields: tuple[str, ...] = ()

    @property
    def segment_size(self) -> int:
        """Documents in a segment."""
        return self.batch_size * self.checkpoint_interval

    @property
    def keeps_text(self) -> bool:
        """Whether a stored record holds its document's text."""
        return not self.no_text

    def source_settings(self) -> SourceSettings:
        """What of this concerns the source."""
        return SourceSettings(
            location=self.source,
            json_path=self.json_path,
            id_field=self.id_field,
            text_field=self.text_field,
            metadata_fields=self.metadata_fields,
        )


def allowed_failures(max_failed: int | str, documents: int) -> int:
    """How many dead letters a run of so many documents may have: ``5%`` of 1,000 is 50."""
    if isinstance(max_failed, str):
        return int(Decimal(max_failed.removesuffix("%")) * documents / 100)
    return max_failed

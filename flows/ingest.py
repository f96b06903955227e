"""Fill a vector database from documents: load, batch, embed, upsert.

Run it as ``python flows/ingest.py``, or call the flow: ``report = await ingest(source="docs/*.jsonl", job_id="docs")``.
"""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.run import run_job
from tasks.provider_settings import EmbedderSettings, StoreSettings
from tasks.settings import (
    SAMPLE_SOURCE,
    BatchSize,
    CheckpointInterval,
    Concurrency,
    IngestSettings,
    JobId,
    MaxFailed,
    Name,
    Percent,
    PerMinute,
    Runner,
    Shards,
)


@flow(name="ingest", persist_result=True, result_serializer="json")
async def ingest(
    source: Name = SAMPLE_SOURCE,
    job_id: JobId = "",
    embedder: EmbedderSettings = "hashing",  # type: ignore[assignment] # shorthand for a model
    store: StoreSettings = "lancedb:./data/millrace",  # type: ignore[assignment]
    batch_size: BatchSize = 100,
    checkpoint_interval: CheckpointInterval = 10,
    concurrency: Concurrency = 10,
    rpm: PerMinute = None,
    tpm: PerMinute = None,
    max_failed: MaxFailed = 0,
    max_memory_percent: Percent = 80,
    no_text: bool = False,  # noqa: FBT001, FBT002
    create: bool = False,  # noqa: FBT001, FBT002
    skip_dead_letters: bool = False,  # noqa: FBT001, FBT002
    keep_vectors: bool = False,  # noqa: FBT001, FBT002
    rebuild: bool = False,  # noqa: FBT001, FBT002
    wait: bool = False,  # noqa: FBT001, FBT002
    shards: Shards = 1,
    runner: Runner = "local",
    no_preflight: bool = False,  # noqa: FBT001, FBT002
    json_path: Name = "documents.item",
    id_field: Name = "id",
    text_field: Name = "text",
    metadata_fields: tuple[str, ...] = (),
) -> Any:
    """Fill a vector database from documents; a run that failed goes on where it stopped when it is run again.

    Args:
        source: Where documents come from: a path, glob or directory of JSONL, JSON, CSV or Parquet (also .gz, .zst),
            `-` for standard input, a URL (s3://, gs://, https://), or `sample`: the standard library's documentation.
        job_id: Names the ledger of what is done; the same name resumes. By default made from source and store.
        embedder: `hashing[:DIMENSION]` (offline, lexical), `openai[:MODEL[:DIMENSIONS]]`,
            `cohere[:MODEL[:DIMENSIONS]]` or `sentence-transformers:PATH_OR_NAME`.
        store: `lancedb:PATH/TABLE`, `pinecone:INDEX[/NAMESPACE]`, `qdrant:URL_OR_PATH/COLLECTION`,
            `weaviate:URL/COLLECTION` or `pgvector:DSN/TABLE`.
        batch_size: Most documents in one embedding request; the provider's limits may make it fewer.
        checkpoint_interval: Batches per checkpoint.
        concurrency: Embedding requests in flight.
        rpm: Most embedding requests in any minute.
        tpm: Most model tokens in any minute.
        max_failed: Dead letters above this, a count or a percentage such as `5%`, end the run as Failed.
        max_memory_percent: Reading pauses above this share of the memory that this process may use.
        no_text: Leave the document's text out of the stored record.
        create: Make the collection where it is missing (LanceDB always does).
        skip_dead_letters: Leave documents that an earlier run gave up on, unless they have changed.
        keep_vectors: Keep vectors on disk after they are stored, so that another store can be filled for free.
        rebuild: Forget what is done and upsert everything again, for a collection that was emptied.
        wait: Wait for another run of the same job to end instead of ending at once.
        shards: Parts that the source is cut into: files, byte ranges of JSONL, row groups of Parquet. Each is loaded,
            embedded and upserted by itself, under its own checkpoints; a job may change their number.
        runner: Where shards run. `local`: in this process, one after another. `dask`: in worker processes of this
            machine, one a core. `dask:ADDRESS`: on the workers of the Dask scheduler there. One shard alone runs in
            this process.
        no_preflight: Start without checking source, keys, limits and collection first (a tiny request to the embedder).
        json_path: Path of the array in a JSON file; `item` for a top-level array.
        id_field: Field that holds a document's id.
        text_field: Field that holds a document's text.
        metadata_fields: Fields that become metadata; by default the object `metadata` (JSON) or all other columns.

    Returns:
        The report, as a dictionary.
    """
    return await run_job(IngestSettings(**locals()))


if __name__ == "__main__":
    from flows.command_line import main

    main(ingest, "python flows/ingest.py")

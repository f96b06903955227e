"""What preflight finds in what it has opened: each check a pure function of its arguments, a finding one clause."""

from __future__ import annotations

import resource
from collections.abc import Iterator, Sequence

import numpy as np

from tasks.embed.port import Embedder
from tasks.records import Document, Record, Vectors
from tasks.settings import IngestSettings
from tasks.upsert.port import Store

LOOKED_AT = 100
"""Items from the beginning of the source that are read as a sample: more than any header or odd first line."""
COSINE = "cosine"
_UNIT_LENGTH = 1e-3  # float32 in the wild: OpenAI's vectors are within 1e-6 of length 1, shortened ones within 1e-4
_FILES_BESIDE = 100  # open at a time beside a connection a request: libraries, server, store, checkpoints
_GROWTH = 1.2  # keys, receipts and the file system's blocks beside the vectors themselves
LEDGER_BYTES = 16


def of_limits(settings: IngestSettings, embedder: Embedder) -> Iterator[str]:
    """Limits that no request, or hardly a document, could ever keep."""
    batch = min(settings.batch_size, embedder.limits.max_inputs)
    per_minute = embedder.limits.inputs_per_minute
    if per_minute is not None and batch > per_minute:
        yield f"a batch of {batch:,} texts never fits {per_minute:,} texts a minute: lower --batch-size"
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if settings.concurrency + _FILES_BESIDE > files != resource.RLIM_INFINITY:
        yield (
            f"--concurrency {settings.concurrency:,} needs more open files than the {files:,} that this process may "
            "have: lower it, or raise the limit (ulimit -n)"
        )


def of_documents(
    documents: Sequence[Document], settings: IngestSettings, embedder: Embedder, store: Store
) -> Iterator[str]:
    """Rules that every document of the sample breaks, so that hardly another will keep them."""
    first = f"each of the first {len(documents):,} documents" if len(documents) > 1 else "the first document"
    refusals = [store.refuse(document, keep_text=settings.keeps_text) for document in documents]
    if documents and all(refusals):
        yield f"the store refuses {first}: {refusals[0]}"
    if documents and settings.tpm is not None:
        least = min(embedder.model_tokens(document.text) for document in documents)
        if least > settings.tpm:
            yield f"--tpm {settings.tpm:,} is less than {first} has: at least {least:,} model tokens"


def of_vector(vector: Vectors, store: Store) -> Iterator[str]:
    """What keeps the store from taking, or ranking, such vectors. ``vector`` is one answer, shape (dimension,)."""
    metric = getattr(store, "metric", COSINE)  # a store that tells none looks after it by itself
    length = float(np.linalg.norm(vector))
    if metric != COSINE and abs(length - 1) > _UNIT_LENGTH:
        yield (
            f"{store.identity} ranks by {metric}, like cosine only for vectors of length 1, and the embedder "
            f"makes one of length {length:.3g}: name a collection with the metric cosine"
        )
    most = store.limits.max_request_bytes
    size = store.encode([Record("0", vector, None, {})])[0].size_bytes + store.limits.envelope_bytes
    if most is not None and size > most:
        yield f"one vector takes {size:,} bytes, a request to the store {most:,}: raise its max_request_bytes"


def of_disk(free_bytes: int, *, documents: int, kept: int, dimension: int) -> Iterator[str]:
    """Too little room for checkpoints: vectors of ``kept`` documents at a time, and the ledger of all."""
    needed = checkpoint_bytes(documents=documents, kept=kept, dimension=dimension)
    if needed > free_bytes:
        yield f"checkpoints may take {needed / 1e6:,.0f} MB, {free_bytes / 1e6:,.0f} MB are free where they lie"


def checkpoint_bytes(*, documents: int, kept: int, dimension: int) -> int:
    """The most that checkpoints take on disk at a time, about."""
    vectors = min(kept, documents) * 4 * dimension
    return round(_GROWTH * (vectors + 2 * LEDGER_BYTES * documents))  # receipts, then the ledger made of them

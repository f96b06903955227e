"""The loop that one would write by hand over the official SDKs: the measure for what Millrace adds.

Ten embedding requests in flight, upserts beside them, each vector with its own document. No checkpoints, no ledger, no
retries, no limits, no Prefect: what fails here is lost. ``default`` takes what the SDKs give and take by themselves,
lists of floats; ``tuned`` keeps vectors as arrays: base64 from the raw answer, float32 text in a ready fragment.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
import orjson
from pinecone import AsyncIndex, AsyncPinecone, Vector

MODEL = "text-embedding-3-small"
RECORDS_PER_UPSERT = {"default": 55, "tuned": 90}
"""Below 2 MB at 1,536 dimensions and a kilobyte of text: some 34 KB a record as Python's floats, 20.5 KB as float32."""
UPSERTS_IN_FLIGHT = 10

Document = dict[str, Any]
Embed = Callable[[Sequence[Document]], Awaitable[list[Any]]]


class Bare:
    """One run over one source."""

    def __init__(self, embed: Embed, index: AsyncIndex, records_per_upsert: int) -> None:
        self._embed = embed
        self._index = index
        self._records_per_upsert = records_per_upsert
        self._pending: list[Any] = []
        self._requests: asyncio.Queue[list[Any] | None] = asyncio.Queue(UPSERTS_IN_FLIGHT)
        self.upserted = 0

    async def run(self, batches: Iterator[list[Document]], concurrency: int) -> None:
        """Embed and upsert every batch."""
        async with asyncio.TaskGroup() as group:
            for _ in range(UPSERTS_IN_FLIGHT):
                group.create_task(self._upsert_each())
            async with asyncio.TaskGroup() as embedding:
                for _ in range(concurrency):
                    embedding.create_task(self._embed_each(batches))
            await self._requests.put(self._pending or None)
            await self._requests.put(None)

    async def _embed_each(self, batches: Iterator[list[Document]]) -> None:
        size = self._records_per_upsert
        for batch in batches:
            records = await self._embed(batch)
            self._pending += records
            while len(self._pending) >= size:
                request, self._pending = self._pending[:size], self._pending[size:]
                await self._requests.put(request)

    async def _upsert_each(self) -> None:
        while (records := await self._requests.get()) is not None:
            answer = await self._index.upsert(vectors=records, show_progress=False)
            self.upserted += answer.upserted_count
        await self._requests.put(None)  # for the other workers


def default_embed(client: openai.AsyncOpenAI) -> Embed:
    """Records from the SDK's own answer: each vector a list of floats."""

    async def embed(batch: Sequence[Document]) -> list[Any]:
        answer = await client.embeddings.create(input=[document["text"] for document in batch], model=MODEL)
        items = sorted(answer.data, key=lambda item: item.index)
        return [
            {"id": document["id"], "values": item.embedding, "metadata": _metadata(document)}
            for document, item in zip(batch, items, strict=True)
        ]

    return embed


def tuned_embed(client: openai.AsyncOpenAI) -> Embed:
    """Records from the raw answer: each vector a float32 array, written once as text."""

    async def embed(batch: Sequence[Document]) -> list[Any]:
        answer = await client.embeddings.with_raw_response.create(
            input=[document["text"] for document in batch], model=MODEL, encoding_format="base64"
        )
        items = sorted(orjson.loads(answer.content)["data"], key=lambda item: int(item["index"]))
        return [
            Vector(document["id"], _float32_text(item["embedding"]), None, _metadata(document))
            for document, item in zip(batch, items, strict=True)
        ]

    return embed


def _float32_text(encoded: str) -> Any:
    vector = np.frombuffer(base64.b64decode(encoded), "<f4")
    return orjson.Fragment(orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY))


def _metadata(document: Document) -> dict[str, Any]:
    return {**document["metadata"], "text": document["text"]}


def read(source: Path, batch_size: int) -> Iterator[list[Document]]:
    """Batches of documents, as they are asked for."""
    batch: list[Document] = []
    with source.open("rb") as lines:
        for line in lines:
            batch.append(orjson.loads(line))
            if len(batch) == batch_size:
                yield batch
                batch = []
    if batch:
        yield batch


async def fill(asked: argparse.Namespace) -> dict[str, Any]:
    """Fill the index from the source; what came of it."""
    connections = httpx2.Limits(max_connections=asked.concurrency, max_keepalive_connections=asked.concurrency)
    transport = openai.DefaultAsyncHttpxClient(limits=connections)
    async with (
        openai.AsyncOpenAI(max_retries=0, http_client=transport) as client,
        AsyncPinecone(api_key=os.environ["PINECONE_API_KEY"], connection_pool_maxsize=2 * UPSERTS_IN_FLIGHT) as control,
    ):
        model = await control.indexes.describe(asked.index)
        async with await control.index(host=model.host or "") as index:
            embed = tuned_embed(client) if asked.mode == "tuned" else default_embed(client)
            bare = Bare(embed, index, RECORDS_PER_UPSERT[asked.mode])
            started = time.monotonic()
            await bare.run(read(asked.source, asked.batch_size), asked.concurrency)
            seconds = time.monotonic() - started
    return {
        "upserted": bare.upserted,
        "seconds": round(seconds, 3),
        "documents_per_second": round(bare.upserted / seconds, 1),
    }


def main() -> None:
    """Fill once, print the counts as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mode", choices=sorted(RECORDS_PER_UPSERT))
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--index", required=True)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--concurrency", type=int, default=10)
    report = asyncio.run(fill(parser.parse_args()))
    sys.stdout.write(orjson.dumps(report).decode() + "\n")


if __name__ == "__main__":
    main()

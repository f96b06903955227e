"""Ask a collection: ``python flows/search.py "how do I parse a date"`` prints the nearest documents."""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Annotated

import orjson
from cyclopts import App, CycloptsError, Parameter, validators
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from tasks.embed.open import build_embedder
from tasks.errors import MillraceError, UsageError
from tasks.provider_settings import AnyEmbedderSettings, AnyStoreSettings
from tasks.records import Hit
from tasks.settings import IngestSettings
from tasks.upsert.open import build_store

_BEGINNING = 300  # characters of a hit's text that are shown


@dataclass(frozen=True, slots=True)
class Place:
    """Where to look, and by which embedder; ``identity`` is the one that filled the collection, where that is known."""

    embedder: AnyEmbedderSettings
    store: AnyStoreSettings
    identity: str | None = None


async def search(query: str, place: Place, *, limit: int) -> list[Hit]:
    """The nearest documents, best first. The embedder must be the one that filled the collection.

    Raises:
        UsageError: a missing collection or key, another dimension, or not the embedder that filled the collection.
        TransientError: the embedder or the store cannot be reached.
    """
    async with AsyncExitStack() as stack:
        embedder = build_embedder(place.embedder, concurrency=1)
        stack.push_async_callback(embedder.aclose)
        store = build_store(place.store)
        stack.push_async_callback(store.aclose)
        await embedder.open()
        if place.identity not in {None, embedder.identity}:
            raise UsageError(f"the job was embedded by {place.identity}, which is now {embedder.identity}")
        await store.open(embedder.dimension, create=False)
        vector = await embedder.embed_query(query)
        await store.open(len(vector), create=False)
        return await store.query(vector, limit=limit)


async def find_place(job: str | None, embedder: str | None, store: str | None) -> Place:
    """What the options name; what they leave out is the job's, or the defaults where no job is named.

    Raises:
        UsageError: an unknown shorthand or job.
    """
    chosen = {name: value for name, value in (("embedder", embedder), ("store", store)) if value is not None}
    try:
        settings = IngestSettings.model_validate(chosen)
    except ValidationError as error:
        raise UsageError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error
    if job is None:
        return Place(settings.embedder, settings.store)
    from prefect.settings import temporary_settings  # noqa: PLC0415 - Prefect takes seconds to import

    from flows.local_server import LOCAL_DEFAULTS  # noqa: PLC0415
    from flows.storage import configured_storage, known_job, recorded_settings  # noqa: PLC0415

    with temporary_settings(set_defaults=LOCAL_DEFAULTS):
        record = await known_job(await configured_storage(_warn), job)
    recorded = recorded_settings(record)
    return Place(
        embedder=recorded.embedder if embedder is None else settings.embedder,
        store=recorded.store if store is None else settings.store,
        identity=record.embedder if embedder is None else None,
    )


def run(
    query: str,
    *,
    job: str | None = None,
    embedder: str | None = None,
    store: str | None = None,
    limit: Annotated[int, Parameter(validator=validators.Number(gte=1))] = 5,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Print the documents nearest to a query.

    Args:
        query: What to look for.
        job: Look in the collection of this job, by the embedder that filled it.
        embedder: The embedder that filled the collection, as `ingest` takes it: by default the job's, or `hashing`.
        store: The collection, as `ingest` takes it: by default the job's, or `lancedb:./data/millrace`.
        limit: Most hits.
        json: Print a JSON array instead of a table.
    """
    if not query.strip():
        raise UsageError("the query is empty")
    hits = asyncio.run(_find(query, job=job, embedder=embedder, store=store, limit=limit))
    if json:
        values = [{"id": hit.id, "score": hit.score, "text": hit.text, "metadata": hit.metadata} for hit in hits]
        sys.stdout.write(orjson.dumps(values).decode() + "\n")
    else:
        Console().print(_table(hits) if hits else "nothing found")
    return 0


async def _find(query: str, *, job: str | None, embedder: str | None, store: str | None, limit: int) -> list[Hit]:
    return await search(query, await find_place(job, embedder, store), limit=limit)


def _warn(line: str) -> None:
    sys.stderr.write(f"millrace: {line}\n")


def _table(hits: list[Hit]) -> Table:
    table = Table(box=None, pad_edge=False, show_lines=True)
    table.add_column("score", justify="right", style="bold")
    table.add_column("id", style="cyan", overflow="fold")
    table.add_column("text")
    for hit in hits:
        table.add_row(f"{hit.score:.3f}", hit.id, _beginning(hit.text or ""))
    return table


def _beginning(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _BEGINNING else line[: _BEGINNING - 1].rstrip() + "…"


def main() -> None:
    """Parse, search, print; ends the process with the exit status."""
    app = App(name="python flows/search.py", result_action="return_value")
    app.default(run)
    try:
        status = app(sys.argv[1:], exit_on_error=False, print_error=False)
    except (CycloptsError, MillraceError) as error:
        _warn(str(error))
        status = 2
    sys.exit(status or 0)


if __name__ == "__main__":
    main()

"""Everything that a run needs, opened and checked in the order that finds mistakes before anything is paid."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from contextvars import ContextVar
from hashlib import blake2b
from typing import Any

from pydantic import ValidationError

from flows.findings import LOOKED_AT, of_documents, of_limits, of_vector
from flows.gates import shared_budget
from tasks.embed.open import build_embedder
from tasks.embed.port import TINY_TEXT, Embedder
from tasks.errors import PermanentError, TransientError, UsageError
from tasks.load.source import Source, open_source
from tasks.records import Document, Embedding, Vectors
from tasks.retries import Retries
from tasks.settings import IngestSettings
from tasks.upsert.open import build_store
from tasks.upsert.port import Store


class Providers:
    """The source, the embedder and the store of a run, checked to fit each other."""

    def __init__(self, source: Source, embedder: Embedder, store: Store) -> None:
        self.source = source
        self.embedder = embedder
        self.store = store

    def default_job_id(self) -> str:
        """A name from source and store: readable in front, unmistakable behind."""
        readable = re.sub(r"[^A-Za-z0-9]+", "-", self.source.display).strip("-")[-40:].strip("-") or "source"
        identity = blake2b(f"{self.source.display}\n{self.store.identity}".encode(), digest_size=4).hexdigest()
        return f"{readable}-{identity}"


OPENED: ContextVar[tuple[IngestSettings, Providers] | None] = ContextVar("opened", default=None)
"""What was opened for these settings before the flow began, on the same event loop: nobody waits, or pays, twice."""


@asynccontextmanager
async def open_providers(settings: IngestSettings) -> AsyncIterator[Providers]:
    """Open and check all that a run needs, or take what is `OPENED` for these very settings.

    Raises:
        UsageError: all that was found, in one line that says what to mend.
    """
    opened = OPENED.get()
    if opened is not None and opened[0] == settings:
        yield opened[1]
        return
    async with AsyncExitStack() as stack:
        yield await _Opening(settings, stack).providers()


def settings_of(parameters: dict[str, Any]) -> IngestSettings:
    """The settings that a run's parameters make.

    Raises:
        UsageError: all that is wrong with them, in one line, by the options' names.
    """
    try:
        return IngestSettings(**parameters)
    except ValidationError as error:
        raise UsageError(_one_line(error)) from error


class _Opening:
    """Opens what a run needs and collects what is wrong with it; ``stack`` closes it again.

    The store is opened last, and only where nothing was found yet: that may create a collection.
    """

    def __init__(self, settings: IngestSettings, stack: AsyncExitStack) -> None:
        self._settings = settings
        self._stack = stack
        self._retries = Retries()
        self._findings: list[str] = []

    async def providers(self) -> Providers:
        """All of it, checked; see `open_providers`."""
        settings = self._settings
        source, embedder, store, vector, sample = None, None, None, None, list[Document]()
        with self._finding():
            source = await asyncio.to_thread(open_source, settings.source_settings())
            self._stack.callback(source.close)
            if not settings.no_preflight:
                sample = await asyncio.to_thread(_sample, source)
        with self._finding():
            embedder = build_embedder(settings.embedder, concurrency=settings.concurrency)
            self._stack.push_async_callback(embedder.aclose)
            vector = await self._vector(embedder)
        with self._finding():
            store = build_store(settings.store)
            self._stack.push_async_callback(store.aclose)
        if embedder is not None and not settings.no_preflight:
            self._findings += of_limits(settings, embedder)
        self._raise()
        assert source is not None
        assert embedder is not None
        assert store is not None
        with self._finding():
            dimension, opened = embedder.dimension, store
            await self._retries.call("open", lambda: opened.open(dimension, create=settings.create))
        if not settings.no_preflight and not self._findings:
            self._findings += of_documents(sample, settings, embedder, store)
            self._findings += [] if vector is None else of_vector(vector, store)
        self._raise()
        return Providers(source, embedder, store)

    async def _vector(self, embedder: Embedder) -> Vectors | None:
        """One vector, by one tiny request: it shows that the key is good for it, the account in funds, the dimension.

        Without preflight it is asked for only where the dimension is not known otherwise.
        """
        if not self._settings.no_preflight:
            await self._retries.call("open", embedder.open)
        elif embedder.dimension is not None:
            return None

        async def ask() -> Embedding:
            tpm = self._settings.tpm
            model_tokens = min(tpm, embedder.model_tokens(TINY_TEXT)) if tpm else 0  # `of_limits` says what is too low
            await shared_budget(self._settings, embedder).acquire(model_tokens, 1)
            return await embedder.embed([TINY_TEXT])

        answer = await self._retries.call("open", ask)
        vector: Vectors = answer.vectors[0]
        return vector

    @contextmanager
    def _finding(self) -> Iterator[None]:
        try:
            yield
        except TransientError as error:
            self._findings.append(f"not reachable: {error}")
        except (UsageError, PermanentError) as error:
            self._findings.append(str(error))

    def _raise(self) -> None:
        if self._findings:
            raise UsageError("; ".join(self._findings))


def _sample(source: Source) -> list[Document]:
    """The documents among the first items of the source, at least one."""
    loaded = next(source.documents(LOOKED_AT), None)
    if loaded is None:
        raise UsageError(f"{source.display} holds no documents")
    if not loaded.documents:
        letter = loaded.dead_letters[0]
        raise UsageError(
            f"{source.display} holds no document among its first {len(loaded.dead_letters):,} items "
            f"({letter.source}, item {letter.position}: {letter.message}): check --id-field and --text-field"
        )
    return loaded.documents


def _one_line(error: ValidationError) -> str:
    """Every complaint, named by its option."""
    return "; ".join(
        f"{'--' + str(each['loc'][0]).replace('_', '-')} {each['input']!r}: {each['msg'].removeprefix('Value error, ')}"
        for each in error.errors(include_url=False)
    )

"""A Sentence Transformers model on this machine, in a thread of its own."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tasks.embed.model_files import fingerprint, local_folder
from tasks.embed.port import EmbedLimits
from tasks.errors import MillraceError, RequestRejectedError, RequestTooLargeError, UsageError
from tasks.extras import optional
from tasks.profiles import SENTENCE_TRANSFORMERS
from tasks.provider_settings import SentenceTransformersSettings
from tasks.records import Embedding, Vectors

VERSION = 1
"""Raised by hand when the same text would get another vector."""
TEXTS_AT_ONCE = {"cpu": 32}
"""Texts of one pass through the model. Measured with all-MiniLM-L6-v2 on two cores, texts of 20 to 160 words, documents
a second: 32 at once 46, 64 36, 128 32, as a processor's caches are small."""
TEXTS_AT_ONCE_ELSEWHERE = 128
_DOCUMENT_PROMPTS = ("document", "passage", "corpus")

_T = TypeVar("_T")


class SentenceTransformersEmbedder:
    """Vectors of a local model; a text that is longer than the model takes is cut by it, and counted.

    One thread feeds the model, and torch spreads each pass over the cores by itself (measured on two cores: 1.7 times
    one; two models in two threads 1.4 times). It lets go of Python's lock meanwhile, so the event loop goes on.
    ``identity`` follows from the content of the model's files, and ``identity`` and ``dimension`` hold once it is open.
    """

    def __init__(self, settings: SentenceTransformersSettings) -> None:
        self.identity = f"sentence-transformers:unopened:v{VERSION}"
        self.dimension: int | None = None
        self.limits = EmbedLimits(max_inputs=SENTENCE_TRANSFORMERS.max_inputs)
        self._settings = settings
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="sentence-transformers")
        self._model: Any = None

    async def open(self) -> None:
        """Load the model, which takes seconds; nothing is fetched unless it is named by a hub name and that is allowed.

        Raises:
            UsageError: no such model here, a device that is not there, or the extra ``local`` is not installed.
        """
        await self._in_worker(self._loaded)

    async def embed(self, texts: Sequence[str]) -> Embedding:
        """Embed documents' texts, with the model's own prompt for documents where it has one. Nothing is billed."""
        return await self._in_worker(lambda: self._embed(list(texts)))

    async def embed_query(self, text: str) -> Vectors:
        """Embed a search query, with the model's own prompt for queries where it has one."""
        rows: Vectors = await self._in_worker(lambda: self._vectors(self._loaded().encode_query, [text]))
        row: Vectors = rows[0]
        return row

    def model_tokens(self, text: str) -> int:  # noqa: ARG002 - the port's
        """Nobody bills them or limits how many a minute are."""
        return 0

    async def aclose(self) -> None:
        """Let the model go when the request under way is done."""
        self._worker.shutdown(wait=False, cancel_futures=True)
        self._model = None

    async def _in_worker(self, act: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._worker, act)

    def _loaded(self) -> Any:
        """The model, loaded by whoever comes first: a run without preflight opens nothing."""
        if self._model is None:
            model, digest = _load(self._settings)
            self.dimension = model.get_embedding_dimension()
            self.identity = f"sentence-transformers:{self.dimension}:{digest}:document:v{VERSION}"
            self._model = model
        return self._model

    def _embed(self, texts: list[str]) -> Embedding:
        model = self._loaded()
        vectors = self._vectors(model.encode_document, texts)
        return Embedding(vectors, model_tokens=0, truncated=count_truncated(model, texts))

    def _vectors(self, encode: Callable[..., Any], texts: list[str]) -> Vectors:
        """Encode texts sorted by length (the library does), so that a pass holds little padding."""
        at_once = TEXTS_AT_ONCE.get(self._model.device.type, TEXTS_AT_ONCE_ELSEWHERE)
        try:
            rows = encode(texts, batch_size=at_once, convert_to_numpy=True, show_progress_bar=False)
        except Exception as error:  # noqa: BLE001 - a model's own code may raise anything
            # `from None`: what a tokenizer or a module complains of may be a text.
            raise translate(error) from None
        vectors: Vectors = np.ascontiguousarray(rows, dtype=np.float32)
        if not np.isfinite(vectors).all():
            raise RequestRejectedError("the model answers with numbers that are not finite")
        return vectors


def count_truncated(model: Any, texts: Sequence[str]) -> int:
    """How many of the texts the model cuts. Only those are tokenized again whose bytes could be too many.

    A model without a longest text (``max_seq_length``) cuts none.
    """
    longest = getattr(model, "max_seq_length", None)
    if longest is None or not math.isfinite(longest):
        return 0
    prompt = next((model.prompts[name] for name in _DOCUMENT_PROMPTS if name in model.prompts), "")
    special = model.tokenizer.num_special_tokens_to_add()
    suspects = [prompt + text for text in texts if len((prompt + text).encode()) + special > longest]
    if not suspects:
        return 0
    found = model.tokenizer(suspects, truncation=False, padding=False, return_attention_mask=False, verbose=False)
    return sum(len(ids) > longest for ids in found["input_ids"])


def translate(error: Exception) -> MillraceError:
    """A failure inside the model as one of ours: halving finds the text, or a request that fits the memory."""
    is_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    kind = RequestTooLargeError if is_memory else RequestRejectedError
    return kind(f"the model failed on this request ({type(error).__name__})")


def _load(settings: SentenceTransformersSettings) -> tuple[Any, str]:
    """The model, and the fingerprint of its files. Imports torch, which takes seconds."""
    with optional("local"):
        from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - torch takes seconds to import
        from transformers.utils import logging  # noqa: PLC0415
    logging.disable_progress_bar()
    folder = local_folder(settings.model)
    is_offline = folder is not None or not settings.allow_download
    name = settings.model if folder is None else str(folder)
    try:
        model = SentenceTransformer(name, device=settings.device, local_files_only=is_offline)
    except (OSError, ValueError) as error:
        raise UsageError(_not_here(settings, folder)) from error
    except (RuntimeError, AssertionError) as error:  # torch's words for a device that it does not have
        raise UsageError(f"{name} cannot be loaded on {settings.device or 'this machine'}") from error
    return model.eval(), fingerprint(folder or _cached_folder(settings.model))


def _not_here(settings: SentenceTransformersSettings, folder: Path | None) -> str:
    if folder is not None:
        return f"{settings.model} holds no model that Sentence Transformers can load"
    if settings.allow_download:
        return f"{settings.model} is not on the hub, or the hub cannot be reached"
    return f"{settings.model} is not on this machine: name its folder, or fetch it first with `hf download`"


def _cached_folder(name: str) -> Path:
    """The hub's cache of a model that was just loaded by this name."""
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415

    repository = name if "/" in name else f"sentence-transformers/{name}"
    for repo_id in (repository, name):
        found = try_to_load_from_cache(repo_id, "config.json")
        if isinstance(found, str):
            return Path(found).parent
    raise UsageError(f"the files of {name} are not where the hub's cache keeps them: name its folder")

"""A local model with real weights: its errors, what it cuts, its thread, and that it knows what words mean."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from tasks.embed.hashing import HashingEmbedder
from tasks.embed.port import Embedder
from tasks.embed.sentence_transformers import SentenceTransformersEmbedder, translate
from tasks.errors import RequestRejectedError, RequestTooLargeError, UsageError
from tasks.provider_settings import HashingSettings, SentenceTransformersSettings

QUESTION = "How do I stop bread from going stale?"
PARAPHRASE = "Keep a loaf soft and fresh for longer by wrapping it in cloth."
DECOYS = [
    "How do I stop a program from going on for ever?",
    "Bread, in the slang of the seventies, is money.",
    "He was going to stop at the bakery, but the stale jokes kept him at home.",
    "The stop of the train at Bread Street is going to close.",
]


async def opened(**settings: object) -> SentenceTransformersEmbedder:
    embedder = SentenceTransformersEmbedder(SentenceTransformersSettings.model_validate(settings))
    await embedder.open()
    return embedder


@pytest.fixture
async def embedder(minilm: Path) -> AsyncIterator[SentenceTransformersEmbedder]:
    """all-MiniLM-L6-v2, open."""
    embedder = await opened(model=str(minilm), device="cpu")
    yield embedder
    await embedder.aclose()


async def best(embedder: Embedder) -> str:
    """The text nearest to the question."""
    texts = [PARAPHRASE, *DECOYS]
    rows = (await embedder.embed(texts)).vectors
    return texts[int(np.argmax(rows @ await embedder.embed_query(QUESTION)))]


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), RequestTooLargeError),
        (OutOfMemoryError("alpha"), RequestTooLargeError),
        (RuntimeError("alpha"), RequestRejectedError),
        (IndexError("alpha"), RequestRejectedError),
    ],
)
def test_a_failure_in_the_model_is_halved(error: Exception, kind: type[Exception]) -> None:
    """Its words are not shown."""
    raised = translate(error)
    assert type(raised) is kind
    assert "alpha" not in str(raised)


async def test_without_the_extra_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Before the model is looked for."""
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(UsageError, match=r"pip install 'millrace\[local\]'"):
        await opened(model=str(tmp_path))


@pytest.mark.local
@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("no-such-model", "fetch it first"),
        ("nobody/no-such-model", "fetch it first"),
        ("./no-such-folder", "there is no folder"),
    ],
)
async def test_a_model_that_is_not_here_is_not_fetched(model: str, message: str) -> None:
    """One line that says what to do."""
    with pytest.raises(UsageError, match=message):
        await opened(model=model)


@pytest.mark.local
async def test_a_folder_without_a_model_is_a_usage_error(tmp_path: Path) -> None:
    """Whatever lies in it."""
    (tmp_path / "notes.json").write_text("{}")
    with pytest.raises(UsageError, match="holds no model"):
        await opened(model=str(tmp_path))


@pytest.mark.local
async def test_a_device_that_is_not_there_is_a_usage_error(minilm: Path) -> None:
    """Such as a misspelt one."""
    with pytest.raises(UsageError, match="toaster"):
        await opened(model=str(minilm), device="toaster")


@pytest.mark.local
async def test_a_paraphrase_is_found_above_lexical_decoys(embedder: SentenceTransformersEmbedder) -> None:
    """Which hashing cannot."""
    assert await best(embedder) == PARAPHRASE
    assert await best(HashingEmbedder(HashingSettings())) in DECOYS


@pytest.mark.local
async def test_a_first_request_opens_it(embedder: SentenceTransformersEmbedder, minilm: Path) -> None:
    """A run without preflight asks for the dimension by a request; identity and dimension hold from then on."""
    unopened = SentenceTransformersEmbedder(SentenceTransformersSettings(model=str(minilm)))
    await asyncio.gather(unopened.embed(["flour"]), unopened.embed_query("flour"))
    assert (unopened.identity, unopened.dimension) == (embedder.identity, 384)
    await unopened.aclose()


@pytest.mark.local
async def test_texts_that_the_model_cuts_are_counted(embedder: SentenceTransformersEmbedder) -> None:
    """To the token: 254 words and the two special ones fit, one word more does not, and its end changes nothing."""
    fits, cut, other = "mill " * 254, "mill " * 254 + "stone", "mill " * 254 + "flour and water"
    assert (await embedder.embed([fits, "short", ""])).truncated == 0
    answer = await embedder.embed([fits, cut, "short", other])
    assert answer.truncated == 2
    assert np.allclose(answer.vectors[1], answer.vectors[3], atol=1e-6)


@pytest.mark.local
async def test_the_event_loop_goes_on_while_the_model_works(embedder: SentenceTransformersEmbedder) -> None:
    """Turns of the loop during one long request."""
    loop, turns = asyncio.get_running_loop(), 0

    def turn() -> None:
        nonlocal turns
        turns += 1
        loop.call_later(0.001, turn)

    turn()
    await embedder.embed(["the mill turns the stone " * 20] * 64)
    assert turns > 50


@pytest.mark.local
async def test_the_identity_follows_the_files_and_not_the_folder(
    embedder: SentenceTransformersEmbedder, minilm: Path, tmp_path: Path
) -> None:
    """A copy has the same one; a copy with another pooling has another."""
    copy = tmp_path / "elsewhere"
    shutil.copytree(minilm, copy)
    same = await opened(model=str(copy))
    assert same.identity == embedder.identity
    await same.aclose()
    pooling = copy / "1_Pooling" / "config.json"
    pooling.write_text(
        pooling.read_text().replace('"pooling_mode_max_tokens": false', '"pooling_mode_max_tokens":false')
    )
    other = await opened(model=str(copy))
    assert other.identity != embedder.identity
    await other.aclose()

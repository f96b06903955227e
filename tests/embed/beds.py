"""What each embedder is tested on: itself, and the real model or our own server behind it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tasks.embed.open import build_embedder
from tasks.embed.port import Embedder
from tasks.provider_settings import (
    AnyEmbedderSettings,
    CohereSettings,
    HashingSettings,
    OpenAISettings,
    SentenceTransformersSettings,
)
from tests.emulators.cohere import CohereEmulator
from tests.emulators.faults import Kind
from tests.emulators.openai import OpenAIEmulator

BAD_KEY = "MILLRACE_BAD_KEY"
SECRET = "secret-key-of-the-emulator"
COMMON_FAULTS: tuple[Kind, ...] = (
    "status_429", "status_500", "status_503", "reset_before", "reset_after", "truncate", "drop_item", "nan",
    "wrong_dimension",
)  # fmt: skip


@dataclass(frozen=True)
class Bed:
    """One embedder's settings and what is behind them. What is None does not exist there: hashing has no server."""

    settings: AnyEmbedderSettings
    others: tuple[AnyEmbedderSettings, ...]
    """Settings that give the same text another vector."""
    server: CohereEmulator | OpenAIEmulator | None = None
    unreachable: Callable[[], Embedder] | None = None
    bad_key: AnyEmbedderSettings | None = None
    unknown_model: AnyEmbedderSettings | None = None
    faults: tuple[Kind, ...] = field(default=COMMON_FAULTS)
    """What a single request meets, with the answer of a transient error."""

    def build(self) -> Embedder:
        """With the usual settings, not opened."""
        return build(self.settings)


def build(settings: AnyEmbedderSettings) -> Embedder:
    """For a few requests at once."""
    return build_embedder(settings, concurrency=4)


def closed_port() -> int:
    """A port of this machine where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


@contextmanager
def hashing_bed(_: pytest.FixtureRequest) -> Iterator[Bed]:
    yield Bed(HashingSettings(), others=(HashingSettings(dimension=512),))


@contextmanager
def sentence_transformers_bed(request: pytest.FixtureRequest) -> Iterator[Bed]:
    model: Path = request.getfixturevalue("minilm")
    yield Bed(SentenceTransformersSettings(model=str(model)), others=())


@contextmanager
def openai_bed(request: pytest.FixtureRequest) -> Iterator[Bed]:
    setting = _keys(request, "OPENAI_API_KEY")

    def unreachable() -> Embedder:
        setting.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{closed_port()}/v1")
        return build(OpenAISettings())

    with OpenAIEmulator(api_key=SECRET) as server:
        setting.setenv("OPENAI_BASE_URL", server.base_url)
        yield Bed(
            OpenAISettings(),
            others=(OpenAISettings(dimensions=256), OpenAISettings(model="text-embedding-3-large")),
            server=server,
            unreachable=unreachable,
            bad_key=OpenAISettings(api_key=BAD_KEY),
            unknown_model=OpenAISettings(model="no-such-model"),
            faults=(*COMMON_FAULTS, "duplicate_item"),
        )


@contextmanager
def cohere_bed(request: pytest.FixtureRequest) -> Iterator[Bed]:
    setting = _keys(request, "CO_API_KEY")

    def unreachable() -> Embedder:
        setting.setenv("CO_API_URL", f"http://127.0.0.1:{closed_port()}")
        return build(CohereSettings())

    with CohereEmulator(api_key=SECRET) as server:
        setting.setenv("CO_API_URL", server.base_url)
        yield Bed(
            CohereSettings(),
            others=(CohereSettings(dimensions=256), CohereSettings(model="embed-english-v3.0")),
            server=server,
            unreachable=unreachable,
            bad_key=CohereSettings(api_key=BAD_KEY),
        )


def _keys(request: pytest.FixtureRequest, name: str) -> pytest.MonkeyPatch:
    setting: pytest.MonkeyPatch = request.getfixturevalue("monkeypatch")
    setting.setenv(name, SECRET)
    setting.setenv(BAD_KEY, f"no-{SECRET}")
    return setting

"""Every provider has a profile, the adapters keep to it, and ``--providers`` shows it."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import get_args

import pytest

from flows.command_line import main
from flows.ingest import ingest
from tasks.embed.open import build_embedder
from tasks.profiles import EMBEDDERS, STORES, default
from tasks.provider_settings import AnyEmbedderSettings, AnyStoreSettings, SentenceTransformersSettings

PROJECT = Path(__file__).parent.parent / "pyproject.toml"


def test_every_kind_of_settings_has_a_profile() -> None:
    """In the order of the settings' unions."""
    for profiles, union in ((EMBEDDERS, AnyEmbedderSettings), (STORES, AnyStoreSettings)):
        assert [profile.kind for profile in profiles] == [default(kind, "kind") for kind in get_args(union)]


def test_what_a_provider_needs_can_be_installed() -> None:
    """Each extra is one of the project's."""
    extras = tomllib.loads(PROJECT.read_text())["project"]["optional-dependencies"]
    assert {profile.extra for profile in (*EMBEDDERS, *STORES)} - {None} <= extras.keys()


def test_the_default_model_is_a_known_one() -> None:
    """So its dimension is known before anything is paid for."""
    for profile in EMBEDDERS:
        assert not profile.default_model or profile.dimension(profile.default_model)


@pytest.mark.parametrize("profile", EMBEDDERS, ids=lambda profile: profile.kind)
def test_an_embedder_keeps_to_its_profile(profile: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it tells the batch stage is what is shown."""
    for key in ("OPENAI_API_KEY", "CO_API_KEY"):
        monkeypatch.setenv(key, "a-key")
    (profile,) = [one for one in EMBEDDERS if one is profile]
    (kind,) = [kind for kind in get_args(AnyEmbedderSettings) if default(kind, "kind") == profile.kind]
    settings = SentenceTransformersSettings(model="any") if kind is SentenceTransformersSettings else kind()
    limits = build_embedder(settings, concurrency=1).limits
    assert limits.max_inputs == profile.max_inputs
    assert limits.max_tokens_per_input == profile.max_tokens_per_input
    assert limits.max_tokens_per_request == profile.max_tokens_per_request
    assert limits.inputs_per_minute == profile.inputs_per_minute


def test_the_command_line_shows_them(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A provider or model a line, also in a pipe, with its source."""
    monkeypatch.setattr(sys, "argv", ["flows/ingest.py", "--providers"])
    with pytest.raises(SystemExit) as ended:
        main(ingest, "python flows/ingest.py")
    assert not ended.value.code
    lines = capsys.readouterr().out.splitlines()
    for profile in (*EMBEDDERS, *STORES):
        (line, *_) = [line for line in lines if line.startswith(f"{profile.kind} ")]
        assert profile.source in line
        assert profile.extra is None or f"millrace[{profile.extra}]" in line
    assert any("embed-v4.0 (default)" in line and "0.12" in line for line in lines)

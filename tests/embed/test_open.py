"""From settings to an embedder."""

from __future__ import annotations

import sys

import pytest

from tasks.embed.open import build_embedder
from tasks.errors import UsageError
from tasks.provider_settings import AnyEmbedderSettings, CohereSettings, HashingSettings, OpenAISettings


def test_a_key_that_is_nowhere_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names it."""
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    for settings in (OpenAISettings(api_key="NO_SUCH_KEY"), CohereSettings(api_key="NO_SUCH_KEY")):
        with pytest.raises(UsageError, match="NO_SUCH_KEY"):
            build_embedder(settings, concurrency=1)


@pytest.mark.parametrize(
    ("settings", "identity"),
    [
        (HashingSettings(dimension=64), "hashing:64:v1"),
        (OpenAISettings(api_key="MY_KEY", dimensions=256), "openai:text-embedding-3-small:256:v1"),
        (CohereSettings(api_key="MY_KEY"), "cohere:embed-v4.0:default:search_document:v1"),
    ],
)
async def test_each_kind_of_settings_has_its_embedder(
    monkeypatch: pytest.MonkeyPatch, settings: AnyEmbedderSettings, identity: str
) -> None:
    """The key is found by its name."""
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.delenv("CO_API_URL", raising=False)
    monkeypatch.setenv("MY_KEY", "sk-mine")
    embedder = build_embedder(settings, concurrency=1)
    assert embedder.identity == identity
    await embedder.aclose()


@pytest.mark.parametrize(("settings", "package", "extra"), [(CohereSettings(api_key="MY_KEY"), "cohere", "cohere")])
def test_an_extra_that_is_not_installed_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, settings: AnyEmbedderSettings, package: str, extra: str
) -> None:
    """One line, before the key is even looked for."""
    monkeypatch.delitem(sys.modules, f"tasks.embed.{extra}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=rf"pip install 'millrace\[{extra}\]'"):
        build_embedder(settings, concurrency=1)


@pytest.mark.parametrize("variable", ["OPENAI_BASE_URL", "CO_API_URL"])
def test_an_address_that_is_none_is_a_usage_error(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """The message names the variable."""
    monkeypatch.setenv("MY_KEY", "sk-mine")
    monkeypatch.setenv(variable, "not an address")
    settings = OpenAISettings(api_key="MY_KEY") if variable.startswith("OPENAI") else CohereSettings(api_key="MY_KEY")
    with pytest.raises(UsageError, match=variable):
        build_embedder(settings, concurrency=1)

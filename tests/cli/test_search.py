"""``python flows/search.py``: it looks in the collection of a job, by the embedder of that job."""

from __future__ import annotations

import json
from pathlib import Path

import orjson
import pytest

from tests.command import Command, Finished, server_url
from tests.emulators.cohere import CohereEmulator

pytestmark = [pytest.mark.cli]

RECIPES = {
    "bread": "Keep a loaf soft and fresh for longer by wrapping it in cloth.",
    "loop": "How do I stop a program from going on for ever?",
    "slang": "Bread, in the slang of the seventies, is money.",
    "long": "mill " * 400,
}
QUESTION = "How do I stop bread from going stale?"


@pytest.fixture
def command(prefect_server: None, tmp_path: Path) -> Command:
    """Against the tests' standing Prefect server, with a source."""
    lines = [json.dumps({"id": id_, "text": text}) for id_, text in RECIPES.items()]
    (tmp_path / "recipes.jsonl").write_text("\n".join(lines))
    return Command(tmp_path, server_url())


def ids(found: Finished) -> list[str]:
    assert found.status == 0, found.stderr
    return [hit["id"] for hit in orjson.loads(found.stdout)]


def mistake(found: Finished) -> str:
    """The one line of a search that could not be."""
    assert (found.status, found.stdout) == (2, "")
    (line,) = found.stderr.splitlines()
    return line


def test_a_job_is_searched_with_its_own_embedder_and_store(command: Command) -> None:
    """Cohere embeds documents as such and queries as such; what the options name wins over the job."""
    with CohereEmulator() as server:
        command.environment |= {"CO_API_URL": server.base_url, "CO_API_KEY": server.api_key}
        options = ("--source", "recipes.jsonl", "--store", "lancedb:./here/recipes", "--job-id", "recipes")
        ended = command.run(*options, "--embedder", "cohere:embed-v4.0:256", "--no-preflight", "--json")
        assert ended.status == 0, ended.stderr
        assert ended.report["model_tokens"] == server.model_tokens > 0
        assert server.input_types == {"search_document": 4}

        asked = command.run(RECIPES["slang"], "--job", "recipes", "--limit", "2", "--json", flow="search")
        assert ids(asked)[0] == "slang"
        assert server.input_types == {"search_document": 4, "search_query": 1}

        wrong = command.run("x", "--job", "recipes", "--embedder", "hashing", flow="search")
        assert "256 dimensions, the embedder makes 1024" in mistake(wrong)
        unknown = command.run("x", "--job", "nobody", flow="search")
        assert "no job nobody is known here" in mistake(unknown)
    gone = command.run("x", "--job", "recipes", flow="search")
    assert "did not answer" in mistake(gone)


@pytest.mark.local
def test_a_local_model_finds_what_is_meant_and_reports_what_it_cut(command: Command, minilm: Path) -> None:
    """Through the whole pipeline with real weights; of four texts one is longer than 256 model tokens."""
    options = ("--source", "recipes.jsonl", "--store", "lancedb:./here/recipes", "--job-id", "local")
    ended = command.run(*options, "--embedder", f"sentence-transformers:{minilm}", "--json")
    assert ended.status == 0, ended.stderr
    assert (ended.report["upserted"], ended.report["truncated"]) == (4, 1)
    assert "as they are longer than it takes: 1" in ended.stderr
    assert ids(command.run(QUESTION, "--job", "local", "--json", flow="search"))[0] == "bread"

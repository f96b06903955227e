"""Mistakes at the command line: one clear line, exit status 2, nothing started and nothing left behind."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.command_line import main
from flows.ingest import ingest
from flows.replay import replay

Ask = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ask:
    """Run the command line in a folder with a few sources; the one line that it answers with."""
    (tmp_path / "good.jsonl").write_text('{"id": "a", "text": "words"}\n')
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "other.json").write_text('{"docs": [{"id": "a", "text": "words"}]}')
    (tmp_path / "table.csv").write_text("key,body\na,words\n")
    (tmp_path / "wide.jsonl").write_bytes('{"id": "a", "text": "words"}\n'.encode("utf-16"))
    monkeypatch.chdir(tmp_path)
    for key in ("OPENAI_API_KEY", "PINECONE_API_KEY", "CO_API_KEY", "PREFECT_API_URL"):
        monkeypatch.delenv(key, raising=False)
    before = set(tmp_path.rglob("*"))

    def ask(*arguments: str, status: int = 2) -> str:
        monkeypatch.setattr(sys, "argv", ["flows/ingest.py", *arguments])
        with pytest.raises(SystemExit) as ended:
            main(ingest, "python flows/ingest.py")
        out, err = capsys.readouterr()
        assert ended.value.code == status
        assert out == ""
        (line,) = err.splitlines()
        assert set(tmp_path.rglob("*")) == before
        return line

    return ask


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (("--sorce", "x"), "Did you mean --source"),
        (("--source", "missing.jsonl"), "no source file at missing.jsonl"),
        (("--source", "none/*.jsonl"), "no source file at none/*.jsonl"),
        (("--source", "empty.jsonl"), "holds no documents"),
        (("--source", ""), "--source"),
        (("--source", "other.json"), "top-level keys: 'docs'"),
        (("--source", "other.json", "--json-path", "docs"), "docs.item"),
        (("--source", "table.csv"), "id_field"),
        (("--source", "wide.jsonl"), "UTF-16"),
        (("--source", "good.jsonl", "--job-id", "../escape"), "beginning with a letter or digit"),
        (("--source", "good.jsonl", "--embedder", "word2vec"), "use one of hashing"),
        (("--source", "good.jsonl", "--embedder", "hashing:many"), "not a number of dimensions"),
        (("--source", "good.jsonl", "--store", "redis:x"), "use one of lancedb"),
        (("--source", "good.jsonl", "--embedder", "openai"), "OPENAI_API_KEY is not set"),
        (("--source", "good.jsonl", "--store", "pinecone:docs"), "PINECONE_API_KEY is not set"),
        (("--source", "good.jsonl", "--batch-size", "0"), "greater than or equal to 1"),
        (("--source", "good.jsonl", "--batch-size", "many"), "--batch-size"),
        (("--source", "good.jsonl", "--max-failed", "most"), "nor a percentage"),
        (("--source", "good.jsonl", "--report", "missing/report.json"), "cannot be written"),
        (("--source", "good.jsonl", "--store", "lancedb:good.jsonl/table"), "name another place"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(refused: Ask, arguments: tuple[str, ...], advice: str) -> None:
    """Nothing is started: no server, no folder, no request."""
    assert advice in refused(*arguments)


def test_replay_of_an_unknown_reason_names_the_known_ones(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before a server is started."""
    monkeypatch.setattr(sys, "argv", ["flows/replay.py", "job", "--reason", "bored"])
    with pytest.raises(SystemExit) as ended:
        main(replay, "python flows/replay.py")
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert "exhausted" in line

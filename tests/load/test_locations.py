"""Where a source may lie, in what order its files come, and what is said when nothing is there."""

from __future__ import annotations

import functools
import gzip
import http.server
import importlib
import io
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest

from tasks.errors import UsageError
from tasks.load.locations import without_secrets
from tasks.load.source import open_source
from tasks.settings import SourceSettings
from tests.load.writers import WRITERS, as_json, as_jsonl, read


def item(document_id: str) -> dict[str, str]:
    """A document with its id in its text."""
    return {"id": document_id, "text": f"text of {document_id}"}


def ids(location: str | Path) -> list[str]:
    """The ids of a source's documents, in order."""
    return [document.id for document in read(location)[0]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of several formats, some of them not to be read."""
    for name in ("b.jsonl", "a.jsonl", "sub/c.jsonl", ".hidden/d.jsonl", ".e.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(as_jsonl([item(name)]))
    (tmp_path / "sub/z.json.gz").write_bytes(gzip.compress(as_json([item("z")])))
    (tmp_path / "README.md").write_text("no source")
    return tmp_path


@pytest.fixture
def memory() -> Iterator[str]:
    """A folder in fsspec's own file system in memory."""
    filesystem = fsspec.filesystem("memory")
    for name in ("b.jsonl", "a.jsonl", "sub/c.jsonl", ".hidden/d.jsonl", "note.txt"):
        filesystem.pipe(f"/source/{name}", as_jsonl([item(name)]))
    yield "memory://source"
    filesystem.rm("/source", recursive=True)


def test_a_directory_is_read_in_the_order_of_its_names(folder: Path) -> None:
    """Recursively, known endings only, hidden files and folders left alone."""
    assert ids(folder) == ["a.jsonl", "b.jsonl", "sub/c.jsonl", "z"]


def test_a_glob_is_read_in_the_order_of_its_names(folder: Path) -> None:
    """With ** across folders."""
    assert ids(folder / "*.jsonl") == ["a.jsonl", "b.jsonl"]
    assert ids(folder / "**" / "*.jsonl") == ["a.jsonl", "b.jsonl", "sub/c.jsonl"]


def test_a_name_with_glob_letters_is_a_file_if_it_is_there(tmp_path: Path) -> None:
    """What exists is not a pattern."""
    (tmp_path / "part[1].jsonl").write_bytes(as_jsonl([item("x")]))
    assert ids(tmp_path / "part[1].jsonl") == ["x"]


def test_places_go_on_from_file_to_file(folder: Path) -> None:
    """A segment spans small files."""
    with open_source(SourceSettings(location=str(folder))) as source:
        spans = [(loaded.first, loaded.last, list(loaded.places)) for loaded in source.documents(3)]
    assert spans == [(0, 2, [0, 1, 2]), (3, 3, [3])]


def test_a_url_may_be_a_file_a_glob_or_a_directory(memory: str) -> None:
    """As on the local disk."""
    assert ids(f"{memory}/b.jsonl") == ["b.jsonl"]
    assert ids(f"{memory}/*.jsonl") == ["a.jsonl", "b.jsonl"]
    assert ids(memory) == ["a.jsonl", "b.jsonl", "sub/c.jsonl"]


def test_a_file_url_is_read(folder: Path) -> None:
    """`file://` is fsspec's way to the local disk."""
    assert ids(f"file://{folder}/a.jsonl") == ["a.jsonl"]


@pytest.fixture
def web(folder: Path) -> Iterator[str]:
    """A plain web server: it sends files whole and knows no ranges."""
    pytest.importorskip("aiohttp")
    (folder / "p.parquet").write_bytes(WRITERS["parquet"]([item("p")]))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("name", "expected"), [("a.jsonl", "a.jsonl"), ("sub/z.json.gz", "z"), ("p.parquet", "p")])
def test_a_web_server_without_ranges_is_enough(web: str, name: str, expected: str) -> None:
    """Signed addresses keep their query, and no document shows it."""
    (document,), _ = read(f"{web}/{name}?signature=key")
    assert (document.id, document.source) == (expected, f"{web}/{name}")


def test_a_missing_web_page_is_a_usage_error(web: str) -> None:
    """404 is a wrong address."""
    with pytest.raises(UsageError, match=r"no source file at http://.*/none\.jsonl: check the path"):
        read(f"{web}/none.jsonl?signature=key")


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("nowhere.jsonl", "no source file at nowhere.jsonl"),
        ("nowhere/*.jsonl", r"no source file at nowhere/\*"),
        ("memory://nowhere/x.jsonl", "no source file at memory://nowhere/x.jsonl"),
        ("https://[user:key@host/x", r"https://\.\.\."),
        ("nonsense://user:key@host/x", "nonsense://host/x is not an address that can be read"),
    ],
)
def test_nothing_there_is_a_usage_error(location: str, message: str) -> None:
    """The message shows the location without its secrets."""
    with pytest.raises(UsageError, match=message) as raised:
        open_source(SourceSettings(location=location))
    assert "key" not in str(raised.value)


def test_a_directory_without_sources_says_what_it_looked_for(tmp_path: Path) -> None:
    """The known endings are in the message."""
    (tmp_path / "note.txt").write_text("no source")
    with pytest.raises(UsageError, match=r"no source file at .*\.jsonl, .*\.parquet"):
        open_source(SourceSettings(location=str(tmp_path)))


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way to install it stands in the message."""
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(importlib.import_module("fsspec.registry")._registry, "s3", raising=False)
    with pytest.raises(UsageError, match=r"pip install 'millrace\[s3\]'"):
        open_source(SourceSettings(location="s3://bucket/x.jsonl"))


def test_a_shown_url_has_no_secrets() -> None:
    """User, password, query and fragment stay out of names, logs and errors."""
    assert without_secrets("https://me:key@host:8080/a/b.jsonl?X-Sig=key#key") == "https://host:8080/a/b.jsonl"
    assert without_secrets("data/what?.jsonl") == "data/what?.jsonl"


@pytest.mark.parametrize("format_name", WRITERS)
@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gz"])
def test_standard_input_is_told_by_its_first_bytes_and_read_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format_name: str, compress: type[bytes]
) -> None:
    """Both passes see it, and closing removes the spool."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    data = compress(WRITERS[format_name]([item("a"), item("b")]))
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    assert ids("-") == ["a", "b"]
    assert not list(tmp_path.iterdir())


def test_standard_input_that_is_nothing_known_leaves_no_spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message asks for an ending."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"Dear reader,\nhello")))
    with pytest.raises(UsageError, match="cannot tell the format of standard input"):
        open_source(SourceSettings(location="-"))
    assert not list(tmp_path.iterdir())


def test_a_named_pipe_is_spooled_like_standard_input(tmp_path: Path) -> None:
    """So is what a shell's <(...) makes."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(as_jsonl([item("a")]),))
    writer.start()
    assert ids(pipe) == ["a"]
    writer.join()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'{"id": "a", "text": "t"}\n{"id": "b", "text": "t"}\n', ["a", "b"]),
        (b'{"documents": [{"id": "a", "text": "t"}]}', ["a"]),
        (b'{\n "meta": {},\n "documents": [{"id": "a", "text": "t"}]}', ["a"]),
        (b'[{"id": "a", "text": "t"}]', ["a"]),
        (b"text\tid\nt\ta\n", ["a"]),
        (b'garbage\n{"id": "b", "text": "t"}\n', ["b"]),
        (b'{"id": "a", "text": "' + b"x" * 200_000 + b'"}\n{"id": "b", "text": "t"}', ["a", "b"]),
        (b"", []),
    ],
)
def test_a_file_without_a_telling_name_is_told_by_its_first_bytes(
    tmp_path: Path, data: bytes, expected: list[str]
) -> None:
    """JSONL, JSON document, JSON array, table."""
    (tmp_path / "source").write_bytes(data)
    assert ids(tmp_path / "source") == expected


def test_opening_a_source_does_not_import_what_it_does_not_need() -> None:
    """Help and flag errors must be quick."""
    code = "import sys, tasks.load.source; print({'pyarrow', 'ijson', 'fsspec', 'zstandard'} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "set()"

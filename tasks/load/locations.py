"""From a location to its files: path, glob, directory, standard input, fsspec URL."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast
from urllib.parse import urlsplit, urlunsplit

from tasks.errors import UsageError
from tasks.load.streams import Compression, SourceStream, StoredFile

STDIN = "-"
HTTP = ("http://", "https://")
ENDINGS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}
COMPRESSION_ENDINGS: dict[str, Compression] = {".gz": "gz", ".zst": "zst"}
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "http": "http", "https": "http"}


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a source. ``name`` is safe to show; ``filesystem`` is fsspec's, None for a local file.

    ``format`` and ``compression`` follow from the name's endings; an empty format means that they must be sniffed.
    """

    name: str
    path: str
    filesystem: Any = None
    format: str = ""
    compression: Compression = ""

    @property
    def is_http(self) -> bool:
        """Whether a web server has it, which may offer nothing but the whole from the start."""
        return self.path.startswith(HTTP)

    def size_bytes(self) -> int:
        """Stored bytes; 0 where the server does not say.

        Raises:
            UsageError: missing, not permitted, or not reachable.
        """
        with mended(self.name):
            if self.filesystem is None:
                return os.path.getsize(self.path)  # noqa: PTH202
            return int(self.filesystem.size(self.path) or 0)

    def open_raw(self) -> StoredFile:
        """The bytes as they are stored.

        Raises:
            UsageError: missing, not permitted, or not reachable.
        """
        with mended(self.name):
            if self.filesystem is None:
                return StoredFile(open(self.path, "rb", buffering=0), self.name)  # noqa: PTH123
            streaming = {"block_size": 0} if self.is_http else {}  # else fsspec needs range requests
            return StoredFile(self.filesystem.open(self.path, "rb", **streaming), self.name)

    def open(self, *, quiet: bool = False) -> SourceStream:
        """The bytes decompressed; `SourceStream` says what may be raised."""
        raw = self.open_raw()
        try:
            return SourceStream(raw, self.compression, self.name, quiet=quiet)
        except BaseException:
            raw.close()
            raise

    def open_seekable(self) -> StoredFile:
        """The bytes decompressed and seekable, through an unnamed temporary file where they are not so already."""
        if not self.compression and not self.is_http:
            return self.open_raw()
        spooled = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            with self.open() as stream:
                shutil.copyfileobj(stream, spooled, 1 << 20)
        except BaseException:
            spooled.close()
            raise
        spooled.seek(0)
        return StoredFile(spooled, self.name)


def by_endings(name: str) -> tuple[str, Compression]:
    """Format and compression that a file's name says, empty where it says none: ``a.CSV.gz`` is csv and gz."""
    path = PurePosixPath(name.lower())
    compression = COMPRESSION_ENDINGS.get(path.suffix, "")
    return ENDINGS.get((path.with_suffix("") if compression else path).suffix, ""), compression


def without_secrets(location: str) -> str:
    """A location that may be shown: a URL loses user, password, query and fragment."""
    if "://" not in location:
        return location
    try:
        parts = urlsplit(location)
    except ValueError:  # not even an address
        return f"{location.partition('://')[0]}://..."
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def locate(location: str) -> list[SourceFile]:
    """The files of a path, glob, directory (recursive, known endings, no hidden names) or URL, sorted by name.

    Raises:
        UsageError: nothing is there, or the URL needs a package that is not installed.
    """
    files = _remote(location) if "://" in location else _local(location)
    if not files:
        raise UsageError(
            f"no source file at {without_secrets(location)}: check the path; a directory is searched for "
            f"{', '.join(ENDINGS)} (each also .gz, .zst)"
        )
    return files


def is_stream(location: str) -> bool:
    """Whether the location can be read only once: standard input, a pipe, a device."""
    if location == STDIN:
        return True
    path = Path(location).expanduser()
    return "://" not in location and path.exists() and not path.is_file() and not path.is_dir()


def spool(location: str) -> Path:
    """Copy what can be read only once to a temporary file, to be deleted by the caller."""
    stream = sys.stdin.buffer if location == STDIN else Path(location).expanduser().open("rb")
    with contextlib.ExitStack() as undo:
        if location != STDIN:
            undo.enter_context(stream)
        with tempfile.NamedTemporaryFile(prefix="millrace-", delete=False) as spooled:
            path = Path(spooled.name)
            failed = undo.enter_context(contextlib.ExitStack())
            failed.callback(path.unlink)
            shutil.copyfileobj(stream, spooled, 1 << 20)
        failed.pop_all()
    return path


@contextlib.contextmanager
def mended(name: str) -> Iterator[None]:
    """Whatever a file system raises, as one line without addresses or keys."""
    try:
        yield
    except FileNotFoundError as error:
        raise UsageError(f"no source file at {name}: check the path") from error
    except PermissionError as error:
        raise UsageError(f"{name} may not be read: check its permissions or your credentials") from error
    except Exception as error:
        raise UsageError(f"{name} cannot be opened ({type(error).__name__}): check address and credentials") from error


def _local(location: str) -> list[SourceFile]:
    path = os.path.expanduser(location)  # noqa: PTH111  # pathlib would drop a leading ./
    if os.path.isdir(path):  # noqa: PTH112
        return [_file(name) for name in sorted(_walk(path)) if by_endings(name)[0]]
    if os.path.exists(path):  # noqa: PTH110
        return [_file(path)]
    return [_file(name) for name in sorted(glob.glob(path, recursive=True)) if os.path.isfile(name)]  # noqa: PTH113, PTH207


def _walk(directory: str) -> Iterator[str]:
    for folder, folders, names in os.walk(directory):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (os.path.join(folder, name) for name in names if not name.startswith("."))  # noqa: PTH118


def _file(path: str, name: str = "", filesystem: Any = None) -> SourceFile:
    name = name or path
    return SourceFile(name, path, filesystem, *by_endings(name))


def _remote(location: str) -> list[SourceFile]:
    name = without_secrets(location)
    filesystem, path = _filesystem(location, name)
    if location.startswith(HTTP):
        return [_file(path, name, filesystem)]
    with mended(name):
        if glob.has_magic(path):
            return [_named(found, filesystem) for found in sorted(filesystem.glob(path)) if filesystem.isfile(found)]
        if filesystem.isdir(path):
            found = sorted(filesystem.find(path))
            return [_named(each, filesystem) for each in found if by_endings(each)[0] and not _is_hidden(each, path)]
        return [_file(path, name, filesystem)] if filesystem.exists(path) else []


def _named(path: str, filesystem: Any) -> SourceFile:
    return _file(path, without_secrets(filesystem.unstrip_protocol(path)), filesystem)


def _is_hidden(path: str, directory: str) -> bool:
    return any(part.startswith(".") for part in path.removeprefix(directory).split("/"))


def _filesystem(location: str, name: str) -> tuple[Any, str]:
    import fsspec  # noqa: PLC0415

    scheme = location.partition("://")[0]
    try:
        return cast("tuple[Any, str]", fsspec.core.url_to_fs(location))
    except ImportError as error:
        wanted = f"'millrace[{EXTRAS[scheme]}]'" if scheme in EXTRAS else f"fsspec's package for {scheme}://"
        raise UsageError(f"{name} needs a package that is not installed: pip install {wanted}") from error
    except Exception as error:
        raise UsageError(f"{name} is not an address that can be read: check what stands before ://") from error

"""The files of a model on this machine: where they lie, and the fingerprint of what they hold."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path

from tasks.errors import UsageError

_SHAPES_A_VECTOR = frozenset({".json", ".txt", ".model", ".safetensors", ".bin", ".py"})
_OTHER_BACKENDS = frozenset({"onnx", "openvino"})
_READ_BYTES = 1 << 20


def local_folder(model: str) -> Path | None:
    """The folder that ``model`` names; None where it is a name on the hub.

    Raises:
        UsageError: it looks like a path, and there is no such folder.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise UsageError(f"there is no folder {model}: name one that holds a model, or a model of the hub")
    return None


def fingerprint(folder: Path) -> str:
    """16 hex digits over the content of each file that shapes a vector, whatever the folder is called.

    Content and not size or time: a model copied to another machine keeps its vectors, and one that was trained on in
    the same folder does not. About a second a gigabyte, less than the model takes to load.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and _counts(path.relative_to(folder)))
    if any(path.suffix == ".safetensors" for path in files):
        files = [path for path in files if path.suffix != ".bin"]  # the same weights again
    digest = blake2b(digest_size=8)
    for path in files:
        name = path.relative_to(folder).as_posix().encode()
        digest.update(len(name).to_bytes(4) + name + path.stat().st_size.to_bytes(8))
        with path.open("rb") as content:
            while block := content.read(_READ_BYTES):
                digest.update(block)
    return digest.hexdigest()


def _counts(path: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.parts)
    return path.suffix in _SHAPES_A_VECTOR and not hidden and path.parts[0] not in _OTHER_BACKENDS

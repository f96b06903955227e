"""A model's fingerprint follows from the content of its files and from nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tasks.embed.model_files import fingerprint, local_folder
from tasks.errors import UsageError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Files as a model has them."""
    folder = tmp_path / "model"
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "1_Pooling" / "config.json").write_text('{"mean": true}')
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def test_a_copy_elsewhere_is_the_same_model(model: Path, tmp_path: Path) -> None:
    """Moving a model must not embed everything again."""
    shutil.copytree(model, tmp_path / "copy")
    assert fingerprint(tmp_path / "copy") == fingerprint(model)


@pytest.mark.parametrize("name", ["config.json", "1_Pooling/config.json", "model.safetensors"])
def test_another_content_of_the_same_size_is_another_model(model: Path, name: str) -> None:
    """A model that was trained on in its folder."""
    before = fingerprint(model)
    content = bytearray((model / name).read_bytes())
    content[0] ^= 1
    (model / name).write_bytes(content)
    assert fingerprint(model) != before


def test_content_that_moves_between_files_is_another_model(model: Path) -> None:
    """Names and sizes are part of it."""
    before = fingerprint(model)
    (model / "config.json").rename(model / "other.json")
    assert fingerprint(model) != before


@pytest.mark.parametrize(
    "name", ["README.md", ".gitattributes", ".cache/x.json", "onnx/model.json", "pytorch_model.bin", "tf_model.h5"]
)
def test_what_shapes_no_vector_changes_nothing(model: Path, name: str) -> None:
    """Words about the model, and the same weights for other libraries."""
    before = fingerprint(model)
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_text("anything")
    assert fingerprint(model) == before


def test_weights_that_are_the_only_ones_count(model: Path) -> None:
    """An older model has no safetensors."""
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    before = fingerprint(model)
    (model / "pytorch_model.bin").write_bytes(b"WEIGHTS")
    assert fingerprint(model) != before


def test_a_folder_is_told_from_a_name_of_the_hub(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What looks like a path and is none is a mistake, not a name."""
    monkeypatch.chdir(model.parent)
    assert local_folder(str(model)) == model
    assert local_folder("model") == Path("model")
    assert local_folder("all-MiniLM-L6-v2") is None
    assert local_folder("sentence-transformers/all-MiniLM-L6-v2") is None
    for missing in ("./models", "/no/such/folder", "~/no-such-folder", "a/b/c"):
        with pytest.raises(UsageError, match="there is no folder"):
            local_folder(missing)

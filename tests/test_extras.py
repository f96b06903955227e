"""What a person reads who has not installed an optional package."""

from __future__ import annotations

import importlib
import sys

import pytest

from tasks.errors import UsageError
from tasks.extras import optional


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, with the extra's name."""
    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    with pytest.raises(UsageError) as raised, optional("qdrant"):
        importlib.import_module("qdrant_client")
    assert str(raised.value) == "qdrant_client is not installed or too old: pip install 'millrace[qdrant]'"


def test_a_package_without_what_is_asked_of_it_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """An older version imports and then lacks a name."""
    with (
        pytest.raises(UsageError, match=r"json is not installed or too old: pip install 'millrace\[local\]'"),
        optional("local"),
    ):
        from json import of_the_future  # type: ignore[attr-defined]  # noqa: F401, PLC0415


def test_a_mistake_of_ours_is_not_blamed_on_a_package() -> None:
    """It stays an ImportError."""
    with pytest.raises(ModuleNotFoundError), optional("local"):
        importlib.import_module("tasks.no_such_module")

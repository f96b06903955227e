"""The sample corpus: the documentation of Python's own standard library, as it lies on every machine with Python."""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from tasks.records import Document
from tasks.settings import SAMPLE_SOURCE

_SKIPPED = frozenset(
    (
        *(
            "test",
            "tests",
            "idlelib",
            "lib2to3",
            "turtledemo",
            "turtle",
            "tkinter",
            "pydoc_data",
            "distutils",
            "encodings",
        ),
        *("ensurepip", "msilib", "this", "antigravity", "site-packages", "dist-packages", "lib-dynload"),
    )
)
_WRITTEN_IN_C = (
    *("builtins", "datetime", "time", "json", "re", "math", "itertools", "functools", "collections", "operator", "os"),
    *("sys", "struct", "zlib", "binascii", "hashlib", "random", "array", "bisect", "heapq", "decimal", "statistics"),
    *("io", "threading", "pickle", "weakref", "string", "textwrap", "email.utils", "calendar", "contextlib"),
)
"""Modules that are imported to ask for what has no Python source; importing them has no effect but time."""

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
"""Where an object lies in memory, as the default of a parameter says it: another one in every process."""
_Functions = (ast.FunctionDef, ast.AsyncFunctionDef)


class SampleCorpus:
    """Modules, public classes and functions of the standard library that have a docstring.

    The id is the qualified name, the text the signature and the docstring, the metadata ``module`` and ``kind``
    (module, class, function, method). Some thousands, in the same order each time on the same Python. Sources are
    parsed, not imported, but for a fixed list of harmless modules. A first pass takes about a second and is kept.
    """

    def __init__(self) -> None:
        self._kept: list[Document] = []

    def documents(self) -> Iterator[Document]:
        """Every document; there are no dead letters."""
        if not self._kept:
            found = itertools.chain(_parsed(Path(sysconfig.get_path("stdlib"))), _inspected())
            unique: dict[str, tuple[str, dict[str, Any]]] = {}
            for name, signature, text, module, kind in found:
                unique.setdefault(name, (f"{signature}\n\n{text}", {"module": module, "kind": kind}))
            self._kept = [
                Document(name, text, metadata, SAMPLE_SOURCE, position)
                for position, (name, (text, metadata)) in enumerate(unique.items(), 1)
            ]
        return iter(self._kept)

    def ids(self) -> Iterator[str]:
        """Every document's qualified name."""
        return (document.id for document in self.documents())


_Found = tuple[str, str, str, str, str]
"""Qualified name, signature, docstring, module, kind."""


def _parsed(library: Path) -> Iterator[_Found]:
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library).with_suffix("").parts
        names = parts[:-1] if parts[-1] == "__init__" else parts
        if names and not any(name in _SKIPPED or name.startswith("_") or "-" in name for name in names):
            yield from _of_module(".".join(names), ast.parse(path.read_bytes()))


def _of_module(module: str, tree: ast.Module) -> Iterator[_Found]:
    if text := ast.get_docstring(tree):
        yield module, f"module {module}", text, module, "module"
    yield from _of_body(tree.body, module, module, "function")


def _of_body(body: list[ast.stmt], owner: str, module: str, kind: str) -> Iterator[_Found]:
    for node in body:
        if isinstance(node, ast.If | ast.Try):
            yield from _of_body([*node.body, *node.orelse], owner, module, kind)
        if not isinstance(node, (*_Functions, ast.ClassDef)) or node.name.startswith("_"):
            continue
        name, text = f"{owner}.{node.name}", ast.get_docstring(node)
        is_class = isinstance(node, ast.ClassDef)
        if text:
            yield name, _signature(name, node), text, module, "class" if is_class else kind
        if is_class:
            yield from _of_body(node.body, name, module, "method")


def _signature(name: str, node: ast.stmt) -> str:
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(map(ast.unparse, node.bases))
        return f"class {name}({bases})" if bases else f"class {name}"
    assert isinstance(node, _Functions)
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{name}({ast.unparse(node.args)}){returns}"


def _inspected() -> Iterator[_Found]:
    for module in _WRITTEN_IN_C:
        yield from _of_object(importlib.import_module(module), module, module)


def _of_object(owner: Any, owner_name: str, module: str) -> Iterator[_Found]:
    is_module = isinstance(owner, ModuleType)
    for attribute in _public_names(owner):
        member = getattr(vars(owner)[attribute], "__func__", vars(owner)[attribute])
        is_class = isinstance(member, type)
        if not is_class and not inspect.isroutine(member):
            continue
        name = f"{owner_name}.{attribute}"
        if text := inspect.getdoc(member):
            kind = "class" if is_class else "function" if is_module else "method"
            yield name, _asked_signature(name, member), text, module, kind
        if is_class and is_module:
            yield from _of_object(member, name, module)


def _public_names(owner: Any) -> list[str]:
    """What a module says is public, else every name without an underscore, in order."""
    names = getattr(owner, "__all__", None) or vars(owner)
    return sorted(name for name in names if name in vars(owner) and not name.startswith("_"))


def _asked_signature(name: str, member: Any) -> str:
    try:
        return f"{name}{_ADDRESS.sub('', str(inspect.signature(member)))}"
    except (TypeError, ValueError):
        return name

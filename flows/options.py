"""The options of a command line, made from its flow's own parameters."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter

from tasks.records import Reason

_PLAIN_TYPES = (int, float, str, bool, int | None, tuple[str, ...], tuple[Reason, ...])

_GROUPS = {
    "Run": ("source", "job_id", "embedder", "store", "create"),
    "Pace and size": ("batch_size", "concurrency", "rpm", "tpm", "max_memory_percent", "shards", "runner"),
    "Checkpoints and dead letters": (
        *("checkpoint_interval", "max_failed", "skip_dead_letters", "keep_vectors", "rebuild", "wait", "no_preflight"),
        "reason",
    ),
    "Documents": ("json_path", "id_field", "text_field", "metadata_fields", "no_text"),
    "Report": ("report", "json"),
}
"""What belongs together on the page of ``--help``; an option that is in none stands apart."""
_PANELS = {
    name: panel
    for panel, names in ((Group.create_ordered(title), names) for title, names in _GROUPS.items())
    for name in names
}


def options_of(flow_function: Callable[..., Any]) -> inspect.Signature:
    """The flow's parameters as options, those without a default as arguments; a model by its shorthand string."""
    hints = typing.get_type_hints(flow_function)
    options = [
        parameter.replace(annotation=str)
        if parameter.default is inspect.Parameter.empty
        else _option(name, hints[name], parameter.default)
        for name, parameter in inspect.signature(flow_function).parameters.items()
    ]
    report = _option("report", Path | None, None, help="Write the report to this file, as JSON.")
    as_json = _option("json", bool, default=False, help="Print the report as JSON: the last line of standard output.")
    return inspect.Signature([*options, report, as_json])


def _option(name: str, hint: Any, default: Any, **shown: Any) -> inspect.Parameter:
    if hint not in (*_PLAIN_TYPES, Path | None):
        hint, default = str, str(default)
    if name in _PANELS:
        shown["group"] = _PANELS[name]
    if name == "source":  # `-` is standard input
        shown["allow_leading_hyphen"] = True
    if default in {"", False, None, ()}:
        shown["show_default"] = False
    annotation = Annotated[hint, Parameter(**shown)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)

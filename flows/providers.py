"""``python flows/ingest.py --providers``: what every provider allows and costs."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from tasks.profiles import EMBEDDERS, STORES, EmbedderProfile, Model, StoreProfile
from tasks.provider_settings import EMBEDDER_SHORTHANDS, STORE_SHORTHANDS

_WIDTH_IN_A_PIPE = 260
_EMBEDDERS = (
    "embedder", "model", "dimensions", "tokens a text", "texts a request", "tokens a request", "texts a minute",
    "$ per million tokens", "needs", "source",
)  # fmt: skip
_STORES = (
    "store", "records a request", "bytes a request", "metadata bytes", "ids", "price", "needs", "source",
)  # fmt: skip


def show_providers() -> None:
    """Print two tables: a row for each embedding model that is known, and one for each store."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH_IN_A_PIPE)  # a row stays a line, for grep
    console.print(_table(_EMBEDDERS, (row for profile in EMBEDDERS for row in embedder_rows(profile))))
    console.print(_table(_STORES, map(store_row, STORES)))
    console.print(f"--embedder {' | '.join(EMBEDDER_SHORTHANDS)}\n--store {' | '.join(STORE_SHORTHANDS)}", markup=False)
    console.print("- is no documented limit; prices are the providers' pages', which decide")


def embedder_rows(profile: EmbedderProfile) -> Iterator[tuple[str, ...]]:
    """A row for each model, the default one marked; one row where any model will do."""
    for name, model in (profile.models or {"any": Model(None)}).items():
        yield (
            profile.kind,
            f"{name} (default)" if name and name == profile.default_model else name,
            _number(model.dimension),
            _number(model.max_tokens),
            _number(profile.max_inputs),
            _number(profile.max_tokens_per_request),
            _number(profile.inputs_per_minute),
            "nothing" if profile.is_free else "see provider" if model.price is None else f"{model.price:.2f}",
            _needs(profile.extra),
            profile.source,
        )


def store_row(profile: StoreProfile) -> tuple[str, ...]:
    """The row of a store."""
    longest = "" if profile.max_id_characters is None else f", {profile.max_id_characters} characters"
    return (
        profile.kind,
        _number(profile.max_records),
        _number(profile.max_request_bytes),
        _number(profile.max_metadata_bytes),
        profile.ids + longest,
        "your own machine" if profile.is_free else "see provider",
        _needs(profile.extra),
        profile.source,
    )


def _table(columns: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        is_number = column.split()[-1] in {"dimensions", "text", "request", "minute", "bytes", "tokens"}
        table.add_column(column, justify="right" if is_number else "left")
    for row in rows:
        table.add_row(*row)
    return table


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _needs(extra: str | None) -> str:
    return "-" if extra is None else f"millrace\\[{extra}]"  # escaped: rich reads brackets as markup

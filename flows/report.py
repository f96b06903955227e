"""A run's report as a person reads it: in a terminal, and as a page of Prefect's UI. No text of a document is in it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from rich.table import Table

from flows.throughput import Interval
from tasks.tally import Report, Tally

_SHOWN = 20  # dead letters on the page; their own artifact has more of them
_BAR = 16


def report_rows(report: Report) -> list[tuple[str, str]]:
    """A name and a value a row."""
    return [
        ("documents", f"{report.documents:,}"),
        ("upserted", f"{report.upserted:,}"),
        ("unchanged", f"{report.unchanged:,}"),
        ("duplicates", f"{report.duplicates:,}"),
        ("dead letters", f"{report.dead_letters:,}"),
        *_cost_rows(report),
    ]


def _cost_rows(report: Report) -> list[tuple[str, str]]:
    stages = ", ".join(f"{stage} {seconds:,.1f}" for stage, seconds in report.stage_seconds.items())
    return [
        ("requests", f"{report.embedding_requests:,} embedding, {report.upsert_requests:,} upsert"),
        ("model tokens", f"{report.model_tokens:,}"),
        *([("truncated", f"{report.truncated:,} documents, cut by the model")] if report.truncated else []),
        ("bytes sent", f"{report.bytes_sent:,}"),
        ("retries", ", ".join(f"{kind} {count:,}" for kind, count in report.retries.items()) or "none"),
        ("seconds", f"{report.seconds:,.1f}" + (f" ({stages}, summed over workers)" if stages else "")),
        ("documents per second", f"{report.documents_per_second:,.0f}"),
        ("peak memory", f"{report.peak_rss_bytes / 1e6:,.0f} MB"),
        ("resumed", "yes" if report.resumed else "no"),
    ]


def report_table(report: Report) -> Table:
    """The report for a terminal."""
    table = Table(title=f"job {report.job_id}", title_justify="left", show_header=False, box=None, pad_edge=False)
    for name, value in report_rows(report):
        table.add_row(name, value)
    return table


def report_markdown(report: Report, tally: Tally, intervals: Sequence[Interval]) -> str:
    """The report as a page: counts, dead letters by reason, throughput over time, what it cost."""
    counts = ("documents", "upserted", "unchanged", "duplicates", "dead_letters")
    parts = [
        f"# Job {report.job_id}",
        _table(
            [name.replace("_", " ") for name in counts], [[f"{getattr(report, name):,}" for name in counts]], "---:"
        ),
    ]
    if tally.dead_letters:
        by_reason = [[reason.value, f"{count:,}"] for reason, count in sorted(tally.dead_letters.items())]
        parts += ["## Dead letters", _table(["reason", "documents"], by_reason), _first_dead_letters(tally)]
    parts += ["## Throughput", _throughput(intervals), "## Cost", _table(["what", "how much"], _cost_rows(report))]
    return "\n\n".join(parts) + "\n"


def _first_dead_letters(tally: Tally) -> str:
    letters = tally.first_dead_letters[:_SHOWN]
    rows = [[letter.id or "", letter.source, str(letter.position), letter.reason, letter.message] for letter in letters]
    more = tally.dead_letters.total() - len(letters)
    table = _table(["id", "source", "position", "reason", "message"], rows)
    return table + (f"\n\nand {more:,} more." if more > 0 else "")


def _throughput(intervals: Sequence[Interval]) -> str:
    most = max([interval.documents_per_second for interval in intervals], default=0) or 1
    rows = [
        [
            _clock(interval.until_seconds),
            f"{interval.documents_per_second:,.0f}",
            "█" * round(_BAR * interval.documents_per_second / most),
        ]
        for interval in intervals
    ]
    return _table(["until", "documents per second", ""], rows)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    return f"{minutes:.0f}:{rest:04.1f}" if minutes < 60 else f"{minutes // 60:.0f}:{minutes % 60:02.0f}:{rest:02.0f}"  # noqa: PLR2004


def _table(header: Iterable[str], rows: Iterable[Iterable[str]], align: str = "---") -> str:
    names = list(header)
    lines = [names, [align] * len(names), *([_cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: str) -> str:
    return re.sub(r"[|\r\n`<>]", " ", value)

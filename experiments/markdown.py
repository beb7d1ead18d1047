"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def table(columns: Iterable[str], rows: Mapping[str, Iterable[str]]) -> list[str]:
    """The lines of a table. The first column holds the names of the rows and has no title."""
    columns = list(columns)
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    return lines + [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]

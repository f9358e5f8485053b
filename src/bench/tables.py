"""Tables for the screen and for docs."""

from __future__ import annotations

from src.bench.measuring import Row


def table(rows: list[Row]) -> str:
    """Return rows as a Markdown table."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[text(row.get(name)) for name in columns] for row in rows]
    widths = [max(len(line[i]) for line in [columns, *cells]) for i in range(len(columns))]
    lines = [columns, ["-" * width for width in widths], *cells]
    return "\n".join("| " + " | ".join(f"{c:<{w}}" for c, w in zip(line, widths, strict=True)) + " |" for line in lines)


def text(value: object) -> str:
    """Return a cell's text: three digits of a float, nothing for None."""
    if isinstance(value, float):
        return f"{value:.3g}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def line(row: Row) -> str:
    """Return a row as one line of names and values."""
    return ", ".join(f"{name} {text(value)}" for name, value in row.items() if value is not None)

"""Tables and figures as text: as wide as they need to be in a file or pipe, folded to the window on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import click

#: Wider than any table; rich then neither folds nor cuts a line.
UNBOUNDED = 100_000
#: Columns of running text.
WIDTH = 118


def show(*parts: Any) -> None:
    """Prints strings and tables to standard output, taken as they are: no markup, no emoji codes."""
    from rich.console import Console

    console = Console(markup=False, emoji=False, highlight=False)
    if console.is_terminal:
        console.print(*parts, sep="\n", soft_wrap=all(isinstance(part, str) for part in parts))
        return
    console.width = UNBOUNDED
    with console.capture() as capture:
        console.print(*parts, sep="\n")
    click.echo("\n".join(line.rstrip() for line in capture.get().splitlines()))


def table(headers: Sequence[str], rows: Iterable[Sequence[object]], *, indent: int = 0) -> Any:
    """A rich table without rules. A header that starts with '>' makes a column of figures, set to the right.

    Where all headers are empty there is no header line.
    """
    from rich.table import Table

    result = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_header=any(headers))
    for i, header in enumerate(headers):
        text = header.removeprefix(">")
        result.add_column((" " * indent if i == 0 else "") + text, justify="right" if text != header else "left")
    for row in rows:
        cells = [str(cell) for cell in row]
        result.add_row(" " * indent + cells[0], *cells[1:])
    return result


def paragraphs(*texts: str) -> Any:
    """Running text, each paragraph on lines of its own, no wider than WIDTH or the terminal."""
    from rich.constrain import Constrain
    from rich.text import Text

    return Constrain(Text("\n".join(texts)), WIDTH)


def count(value: float) -> str:
    """1234567 as '1,234,567'."""
    return f"{round(value):,}"


def plural(number: int, noun: str) -> str:
    """1 and 'node' as '1 node', 2000 as '2,000 nodes'."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def share(value: float) -> str:
    """0.98765 as '98.8 %'; only exactly 1 is '100 %' and only exactly 0 is '0 %'."""
    if value in (0, 1):
        return f"{value * 100:.0f} %"
    return f"{min(max(value * 100, 0.1), 99.9):.1f} %"


def milliseconds(seconds: float) -> str:
    """0.0123456 s as '12.346'."""
    return f"{seconds * 1e3:,.3f}"


def scaled(value: float, unit: str, base: int = 1000) -> str:
    """1.92e10 and 'B/s' as '19.2 GB/s'; with base 1024 the prefixes are Ki, Mi, …"""
    prefixes = ("", "k", "M", "G", "T", "P") if base == 1000 else ("", "Ki", "Mi", "Gi", "Ti", "Pi")
    power = 0
    while abs(value) >= base and power < len(prefixes) - 1:
        value, power = value / base, power + 1
    return f"{value:.4g} {prefixes[power]}{unit}".rstrip()

"""Pieces of Markdown that the cards and the README share."""

from collections.abc import Iterable, Sequence

__all__ = ["markdown_table", "share"]


def share(value: float | None) -> str:
    """Return a share in 0..1 as "31.2 %"."""
    return "undefined" if value is None else f"{100 * value:.1f} %"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of cells without "|"."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))

"""The table that a benchmark prints: each figure beside nginx's, the budget, and where it lies in it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Row:
    """One line of the table; a verdict where there is a budget."""

    figure: str
    router: float | None
    nginx: float | None = None
    value: float | None = None  # what the budget is about: a ratio, or milliseconds added
    unit: str = ""
    at_least: float | None = None
    aim: float | None = None

    @property
    def verdict(self) -> str:
        """Where the value lies in the budget."""
        if self.value is None or self.at_least is None or self.aim is None:
            return ""
        return "aim met" if self.value <= self.aim else "met" if self.value <= self.at_least else "OVER"


def table(lines: list[Row]) -> str:
    """The rows as text."""

    def shown(value: float | None, unit: str = "") -> str:
        if value is None:
            return "-"
        return f"{value:,.0f}{unit}" if abs(value) >= 1000 else f"{value:.3g}{unit}"

    head = ("", "router", "nginx", "measured", "at least", "aim", "")
    cells = [
        (
            row.figure,
            shown(row.router),
            shown(row.nginx),
            shown(row.value, row.unit),
            shown(row.at_least, row.unit),
            shown(row.aim, row.unit),
            row.verdict,
        )
        for row in lines
    ]
    widths = [max(len(line[column]) for line in [head, *cells]) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in (0, 6) else cell.rjust(width) for column, (cell, width) in pairs
        ).rstrip()
        for pairs in (list(enumerate(zip(line, widths, strict=True))) for line in [head, *cells])
    )


def ratio(value: float | None, base: float | None) -> float | None:
    """How many times the base the value is, where there are both."""
    return value / base if value is not None and base else None

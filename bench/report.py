"""A table of results in Markdown."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    name: str
    values: dict[str, str]


def table(rows: list[Row]) -> str:
    """The rows under the union of their columns."""
    columns = list(dict.fromkeys(column for row in rows for column in row.values))
    lines = ["| | " + " | ".join(columns) + " |", "| --- " * (len(columns) + 1) + "|"]
    lines += [f"| {row.name} | " + " | ".join(row.values.get(c, "") for c in columns) + " |" for row in rows]
    return "\n".join(lines)

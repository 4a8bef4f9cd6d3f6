"""Many traces as a file: one JSON object a line, or CSV rows with the plain fields and the token counts."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from typing import Any

from router.trace.export import FIELDS, csv_cell, encode_json

KINDS = {"ndjson": "application/x-ndjson", "csv": "text/csv; charset=utf-8"}
_TOKENS = (
    "input_tokens",
    "cache_read_input_tokens",
    "cache_write_5m",
    "cache_write_1h",
    "output_tokens",
    "thinking_tokens",
)
_NESTED = frozenset(
    {"why", "tags", "facts", "labels", "edits", "affinity", "attempts", "usage", "spans", "batch_lines"}
)
_PLAIN = tuple(name for name in FIELDS if name not in _NESTED)


def sheet(kind: str, records: Iterable[Mapping[str, Any]], *, is_first: bool) -> str:
    """`records` as text of that kind (one of `KINDS`); a CSV begins with the names of its columns if `is_first`."""
    if kind == "ndjson":
        return "".join(f"{encode_json(record)}\n" for record in records)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    if is_first:
        writer.writerow([*_PLAIN, *_TOKENS])
    for record in records:
        usage = record["usage"] or {}
        cells = [record[name] for name in _PLAIN] + [usage.get(name) for name in _TOKENS]
        writer.writerow([csv_cell(cell) for cell in cells])
    return text.getvalue()

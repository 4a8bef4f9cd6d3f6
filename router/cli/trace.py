"""`router trace`: list, show, follow and export the records of requests."""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal
from typing import Any, TextIO

import click

from router.errors import BadFilter, RouterError, SettingsError, TraceStoreError
from router.trace.export import FIELDS, csv_cell, encode_json
from router.trace.filters import MAX_LIMIT, read_query
from router.trace.reader import SqliteTraceReader
from router.trace.record import TraceQuery
from router.trace.sqlite import path_of

_TOKENS = (
    "input_tokens",
    "cache_read_input_tokens",
    "cache_write_5m",
    "cache_write_1h",
    "output_tokens",
    "thinking_tokens",
)
_NESTED = ("why", "tags", "facts", "labels", "edits", "affinity", "attempts", "usage", "spans")
_BAR = 40  # characters of the widest bar of a waterfall


class PlainError(click.ClickException):
    """An error of the family as a command says it: on stderr, with the next step; exit code 1."""

    def __init__(self, error: RouterError) -> None:
        super().__init__(f"{error.message}\nhint: {error.hint}" if error.hint else error.message)


class WrongUsage(PlainError):
    """The same for what was asked wrongly: exit code 2."""

    exit_code = 2


@contextmanager
def saying_errors() -> Iterator[None]:
    """Turn errors of the family into what a person reads, without a traceback."""
    try:
        yield
    except (BadFilter, SettingsError) as error:
        raise WrongUsage(error) from error
    except RouterError as error:
        raise PlainError(error) from error


def store_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """The option that names the trace store."""
    return click.option(
        "--traces",
        "url",
        envvar="ROUTER_TRACES",
        default="sqlite:///router.db",
        show_default=True,
        show_envvar=True,
        metavar="URL",
        help="The trace store.",
    )(command)


def open_reader(url: str) -> SqliteTraceReader:
    """The reader of the store that a URL names. Raises SettingsError, TraceStoreError."""
    path = path_of(url)
    if path is None:
        raise TraceStoreError("traces are off", hint="name a store with `--traces sqlite:///FILE`")
    return SqliteTraceReader(path)


def _filters(command: Callable[..., Any]) -> Callable[..., Any]:
    """The filters that `ls`, `tail` and `export` share."""
    for name, text in reversed(
        (
            ("since", "Not older than this: an age (`30m`, `1h`, `7d`) or a time (`2026-11-22T14:00`, UTC)."),
            ("until", "Older than this."),
            ("rule", "Decided by this rule."),
            ("policy", "Decided by this policy."),
            ("model", "Sent to this model."),
            ("lane", "Sent to this lane."),
            ("task", "Labelled as this task."),
            ("tenant", "From this tenant."),
            ("key", "With this key."),
            ("outcome", "Ended so: ok, client_error, upstream_error, cut, client_closed, internal_error."),
            ("cache", "hit, miss, bypass or coalesced."),
            ("endpoint", "messages, count_tokens, batches, models or passthrough."),
            ("request-id", "With this request id."),
            ("min-cost-usd", "Cost at least this many dollars."),
        )
    ):
        command = click.option(f"--{name}", metavar="TEXT", help=text)(command)
    return command


def _query(given: dict[str, str | None], **more: str) -> TraceQuery:
    wanted = {name: value for name, value in given.items() if value is not None}
    return read_query({**wanted, **more}, time.time_ns())


@click.group()
def trace() -> None:
    """The records of requests: what was chosen and why, what it cost, how long each step took."""


@trace.command()
@store_option
@_filters
@click.option("--limit", default="20", show_default=True, metavar="N", help=f"At most this many, up to {MAX_LIMIT}.")
@click.option("--json", "is_json", is_flag=True, help="A JSON array of whole records.")
def ls(url: str, limit: str, is_json: bool, **given: str | None) -> None:
    """List the newest requests that match."""
    with saying_errors():
        rows = open_reader(url).list(_query(given, limit=limit))
    if is_json:
        click.echo("[" + ",\n".join(map(encode_json, rows)) + "]")
        return
    print_table([_NAMES, *map(_line, rows)], right=_RIGHT)
    if not rows:
        click.echo("no request matches", err=True)


@trace.command()
@store_option
@click.argument("some_id", metavar="ID")
@click.option("--json", "is_json", is_flag=True, help="The whole record as JSON.")
def show(url: str, some_id: str, is_json: bool) -> None:
    """One request: its route and why, attempts, tokens, money and a waterfall.

    ID is a trace id (or the beginning of one, 8 digits at least) or a request id.
    """
    with saying_errors():
        found = open_reader(url).get(some_id)
        if found is None:
            raise TraceStoreError(
                f"no trace and no request has the id `{plain(some_id)}`", hint="`router trace ls` lists the newest"
            )
    click.echo(encode_json(found) if is_json else "\n".join(_told(found)))


@trace.command()
@store_option
@_filters
@click.option("--json", "is_json", is_flag=True, help="One JSON record on each line.")
def tail(url: str, is_json: bool, **given: str | None) -> None:
    """Follow requests as they finish, until Ctrl-C."""
    with saying_errors():
        reader = open_reader(url)
        query = _query(given, limit=str(MAX_LIMIT))
        mark, rows = reader.tail(None, query)
        if not is_json:
            print_table([_NAMES], right=_RIGHT, least=_WIDTHS)
        while True:
            for _, row in rows:
                if is_json:
                    click.echo(encode_json(row))
                else:
                    print_table([_line(row)], right=_RIGHT, least=_WIDTHS)
            sys.stdout.flush()
            time.sleep(0.5)
            mark, rows = reader.tail(mark, query)


@trace.command()
@store_option
@_filters
@click.option("--format", "kind", type=click.Choice(["ndjson", "csv"]), default="ndjson", show_default=True)
@click.option("--output", type=click.File("w", encoding="utf-8", lazy=True), default="-", help="A file; `-` is stdout.")
def export(url: str, kind: str, output: TextIO, **given: str | None) -> None:
    """Write all requests that match, newest first, as JSON lines or CSV.

    CSV holds the plain fields and the token counts; a text that a spreadsheet would run as a formula gets an
    apostrophe in front.
    """
    with saying_errors():
        records = _all(open_reader(url), _query(given, limit=str(MAX_LIMIT)))
        if kind == "ndjson":
            for record in records:
                output.write(encode_json(record) + "\n")
            return
        names = [name for name in FIELDS if name not in _NESTED]
        writer = csv.writer(output, lineterminator="\r\n")
        writer.writerow([*names, *_TOKENS])
        for record in records:
            usage = record["usage"] or {}
            cells = [record[name] for name in names] + [usage.get(name) for name in _TOKENS]
            writer.writerow([csv_cell(cell) for cell in cells])


def _all(reader: SqliteTraceReader, query: TraceQuery) -> Iterator[dict[str, Any]]:
    while True:
        rows, mark = reader.page(query)
        yield from rows
        if mark is None:
            return
        query = replace(query, before=mark)


def plain(value: object) -> str:
    """A text for a terminal: what is not printable is spelled out, so that no record can move the cursor or lie."""
    text = str(value)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def dollars(value: Decimal | None) -> str:
    """An amount for a table: six places, the sign of a refund kept; `?` where the price is unknown."""
    return "?" if value is None else f"{value:,.6f}"


def seconds(value: float | None) -> str:
    """A duration for a table, in the unit that reads best."""
    if value is None:
        return "-"
    if value < 0.001:
        return f"{value * 1e6:.0f} µs"
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"


def print_table(rows: Sequence[Sequence[str]], *, right: Sequence[int], least: Sequence[int] = ()) -> None:
    """Columns with two spaces between them; those whose number is in `right` end flush, `least` are their widths."""
    if rows:
        found = [max(map(len, column)) for column in zip(*rows, strict=True)]
        widths = [max(pair) for pair in zip(found, least or found, strict=True)]
        for row in rows:
            cells = (
                c.rjust(width) if at in right else c.ljust(width)
                for at, (c, width) in enumerate(zip(row, widths, strict=True))
            )
            click.echo("  ".join(cells).rstrip())


_HEAD = (
    ("TIME (UTC)", 10), ("TRACE", 12), ("RULE", 16), ("TASK", 14), ("ASKED", 17), ("SENT", 17), ("CACHE", 6),
    ("OUTCOME", 7), ("TTFT", 7), ("TOOK", 7), ("COST $", 9), ("SAVED $", 9),
)  # fmt: skip
_NAMES = tuple(name for name, _ in _HEAD)
_WIDTHS = tuple(width for _, width in _HEAD)  # of `tail`, which does not know the rows to come
_RIGHT = (8, 9, 10, 11)


def _line(row: dict[str, Any]) -> tuple[str, ...]:
    outcome = row["outcome"] if row["outcome"] == "ok" else f"{row['outcome']} {row['status']}"
    return (
        row["started_at"][11:19],
        row["trace_id"][:12],
        plain(row["rule"])[:24] or "-",
        plain(row["task"] or "-")[:16],
        plain(row["model_asked"])[:28] or "-",
        plain(row["model_sent"])[:28] or "-",
        plain(row["cache"]),
        plain(outcome),
        seconds(row["ttft_s"]),
        seconds(row["duration_s"]),
        dollars(row["cost_usd"]),
        dollars(row["saved_usd"]),
    )


def _conversation(affinity: dict[str, Any] | None) -> Iterator[str]:
    """What the conversation was bound to, and the price of a switch."""
    if affinity is None:
        return
    kept = "kept" if affinity["kept"] else "not kept"
    yield f"bound to lane {plain(affinity['lane'] or '-')}, {affinity['prefix_tokens']:,} tokens so far: {kept}"
    cost = affinity["switch"]
    if cost is not None:
        earned, allowed, other = cost["turns_to_earn"], cost["turns_allowed"], plain(cost["to_model"])
        for when in ("first", "later"):
            stay, switch = dollars(cost[f"stay_{when}_usd"]), dollars(cost[f"switch_{when}_usd"])
            yield f"{'next turn' if when == 'first' else 'each later':10}  {stay} there, {switch} on {other}"
        yield f"not earned back within {allowed} turns" if earned is None else f"earned back by turn {earned}"
        yield "estimates: turns like the last one"


def _told(row: dict[str, Any]) -> Iterator[str]:
    """One trace as a page of text."""
    yield f"trace {row['trace_id']}  request {plain(row['request_id'] or '-')}"
    yield f"{row['started_at']}  {plain(row['method'])} {plain(row['path'])}  {row['status']} {plain(row['outcome'])}"
    if row["error_type"] or row["error_code"]:
        yield f"error {plain(row['error_type'] or '-')} {plain(row['error_code'] or '')}".rstrip()
    yield f"tenant {plain(row['tenant'] or '-')}  key {plain(row['key'] or '-')}  client {plain(row['client'] or '-')}"
    yield ""
    yield "route"
    yield f"  {plain(row['model_asked'])} -> {plain(row['model_sent'])}  lane {plain(row['lane'] or '-')}"
    yield f"  policy {plain(row['policy'])}@{plain(row['revision'])}  rule {plain(row['rule'] or '-')}"
    if row["labels"]:
        yield "  labels " + "  ".join(f"{plain(name)}={plain(value)}" for name, value in row["labels"].items())
    if row["edits"]:
        yield "  edits " + ", ".join(map(plain, row["edits"]))
    yield from _section("why", [plain(reason) for reason in row["why"]])
    yield from _section("conversation", list(_conversation(row["affinity"])))
    yield from _section("attempts", [_attempt(attempt) for attempt in row["attempts"]])
    usage = row["usage"]
    if usage is not None:
        yield from _section("usage", [f"{name} {usage[name]:,}" for name in _TOKENS if usage.get(name)] or ["none"])
    yield from _section("facts", [f"{plain(name)} = {plain(value)}" for name, value in (row["facts"] or {}).items()])
    asked, prices = plain(row["model_asked"]), plain(row["price_version"])
    yield from _section(
        "money",
        [
            f"cost      {dollars(row['cost_usd']):>14}",
            f"baseline  {dollars(row['baseline_usd']):>14}  the same usage at {asked}",
            f"saved     {dollars(row['saved_usd']):>14}  cache {_cache(row)}, prices {prices}",
        ],
    )
    yield from _section("time", list(_waterfall(row)))


def _cache(row: dict[str, Any]) -> str:
    reason = plain(row["cache_reason"])
    return plain(row["cache"]) + (f" ({reason})" if row["cache_reason"] else "")


def _section(name: str, lines: list[str]) -> Iterator[str]:
    if lines:
        yield ""
        yield name
        yield from (f"  {line}" for line in lines)


def _attempt(attempt: dict[str, Any]) -> str:
    parts = [plain(attempt.get("lane")), plain(attempt.get("model")), plain(attempt.get("outcome"))]
    if attempt.get("status") is not None:
        parts.append(str(attempt["status"]))
    if attempt.get("error_type"):
        parts.append(plain(attempt["error_type"]))
    if attempt.get("first_byte_s") is not None:
        parts.append(f"first byte at {seconds(attempt['first_byte_s'])}")
    parts.append(f"cost {dollars(attempt.get('cost_usd'))}")
    return "  ".join(parts)


def _waterfall(row: dict[str, Any]) -> Iterator[str]:
    bars = [(span["name"], span["start_s"], span["end_s"]) for span in row["spans"]]
    bars += [
        (f"attempt {attempt['lane']}", attempt["started_s"], attempt.get("ended_s") or row["duration_s"])
        for attempt in row["attempts"]
        if "started_s" in attempt
    ]
    whole = max([row["duration_s"], 1e-9, *(end for _, _, end in bars)])
    for name, start, end in sorted(bars, key=lambda bar: bar[1]):
        left = min(_BAR - 1, round(start / whole * _BAR))
        width = max(1, min(_BAR - left, round((end - start) / whole * _BAR)))
        yield f"{plain(name)[:20]:<20} |{' ' * left}{'#' * width:<{_BAR - left}}| {seconds(end - start)}"
    first, all_, own = (seconds(row[name]) for name in ("ttft_s", "duration_s", "overhead_s"))
    yield f"first token {first}, all {all_}, the router {own}"

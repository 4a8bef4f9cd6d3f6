"""`router trace`: list, show, follow and export the records of requests."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal
from typing import Any, TextIO

import click

from router.errors import BadFilter, RouterError, SettingsError, TraceStoreError
from router.trace.export import encode_json
from router.trace.filters import MAX_LIMIT, read_query
from router.trace.reader import SqliteTraceReader
from router.trace.record import TraceQuery
from router.trace.sheet import sheet
from router.trace.sqlite import path_of


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


def _fleet_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--fleet", metavar="URL", help="The recent requests of all routers that share this Redis, not those of a store."
    )(command)


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
            (
                "outcome",
                "Ended so: ok, client_error, upstream_error, cut, client_closed, internal_error, shed, …",
            ),
            ("status", "Answered with this HTTP status: `429`, or all of a class: `5xx`."),
            ("cache", "hit, miss, bypass or coalesced."),
            ("cache-reason", "Not looked up, or not kept, because of this: off, rule, no-store, failed, fallback, …"),
            ("conversation", "Of this conversation: the hash in its traces."),
            ("session", "Of this session: the hash in its traces."),
            ("endpoint", "messages, count_tokens, batches, batch_item, models or passthrough."),
            ("batch", "About this Message Batch, or one of its items: the batch's id."),
            ("request-id", "With this request id."),
            ("trace-id", "With this trace id, which a caller may continue in many requests."),
            ("min-duration", "Took at least this long until the answer was whole: `500ms`, `2s`, `1m`."),
            ("min-cost-usd", "Cost at least this many dollars."),
        )
    ):
        command = click.option(f"--{name}", metavar="TEXT", help=text)(command)
    return command


def _query(given: dict[str, str | None], **more: str) -> TraceQuery:
    wanted = {name: value for name, value in given.items() if value is not None}
    return read_query({**wanted, **more}, time.time_ns())


# Commands in files of their own, loaded when they are used: name → module:attribute.
_ELSEWHERE = {"reprice": "router.cli.reprice:reprice"}


class _Group(click.Group):
    """The commands of this file and those of `_ELSEWHERE`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), *_ELSEWHERE]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _ELSEWHERE:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = _ELSEWHERE[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


@click.group(cls=_Group)
def trace() -> None:
    """The records of requests: what was chosen and why, what it cost, how long each step took."""


@trace.command()
@store_option
@_fleet_option
@_filters
@click.option("--limit", default="20", show_default=True, metavar="N", help=f"At most this many, up to {MAX_LIMIT}.")
@click.option("--json", "is_json", is_flag=True, help="A JSON array of whole records.")
def ls(url: str, fleet: str | None, limit: str, is_json: bool, **given: str | None) -> None:
    """List the newest requests that match."""
    with saying_errors():
        query = _query(given, limit=limit)
        if fleet is None:
            rows = open_reader(url).list(query)
        else:
            from router.cli.trace_fleet import fleet_rows  # Redis takes long to load

            rows = fleet_rows(fleet, query)
    if is_json:
        click.echo("[" + ",\n".join(map(encode_json, rows)) + "]")
        return
    names = _NAMES if fleet is None else (*_NAMES, "POD")
    print_table([names, *map(_line, rows)], right=_RIGHT)
    if not rows:
        click.echo("no request matches", err=True)


@trace.command()
@store_option
@click.argument("some_id", metavar="ID")
@click.option("--json", "is_json", is_flag=True, help="The whole record as JSON.")
@click.option(
    "--content", "is_content", is_flag=True, help="What was captured of it, from the router's admin listener."
)
@click.option("--admin", metavar="URL", help="With --content: the admin listener, in place of that of the settings.")
@click.option("--config", metavar="FILE", help="With --content: the settings file.")
def show(url: str, some_id: str, is_json: bool, is_content: bool, config: str | None, admin: str | None) -> None:
    """One request: its route and why, attempts, tokens, money and a waterfall.

    ID is a trace id (or the beginning of one, 8 digits at least) or a request id. `--content` needs the admin
    token, and a router that captures.
    """
    from router.cli.trace_show import batch_items, content_of, told, told_content, told_items

    if is_content:
        with saying_errors():
            kept = content_of(some_id, config, admin)
        click.echo(encode_json(kept) if is_json else "\n".join(told_content(kept)))
        return
    with saying_errors():
        found = open_reader(url).get(some_id)
        if found is None:
            raise TraceStoreError(
                f"no trace and no request has the id `{plain(some_id)}`", hint="`router trace ls` lists the newest"
            )
        is_new_batch = found["endpoint"] == "batches" and found["method"] == "POST" and found["facts"]
        items = batch_items(found["batch"], url, config) if is_new_batch and found["batch"] and not is_json else []
    lines = [*told(found), *told_items(items, (found["facts"] or {}).get("items"))]
    click.echo(encode_json(found) if is_json else "\n".join(lines))


@trace.command()
@store_option
@_fleet_option
@_filters
@click.option("--json", "is_json", is_flag=True, help="One JSON record on each line.")
def tail(url: str, fleet: str | None, is_json: bool, **given: str | None) -> None:
    """Follow requests as they finish, until Ctrl-C."""

    def show_row(row: dict[str, Any]) -> None:
        if is_json:
            click.echo(encode_json(row))
        else:
            print_table([_line(row)], right=_RIGHT, least=_WIDTHS if fleet is None else (*_WIDTHS, 3))
        sys.stdout.flush()

    with saying_errors():
        query = _query(given, limit=str(MAX_LIMIT))
        if fleet is not None:
            from router.cli.trace_fleet import follow_fleet  # as above

            if not is_json:
                print_table([(*_NAMES, "POD")], right=_RIGHT, least=(*_WIDTHS, 3))
            sys.stdout.flush()
            follow_fleet(fleet, query, show_row, 0.5)
            return
        reader = open_reader(url)
        mark, rows = reader.tail(None, query)
        if not is_json:
            print_table([_NAMES], right=_RIGHT, least=_WIDTHS)
        while True:
            for _, row in rows:
                show_row(row)
            sys.stdout.flush()
            time.sleep(0.5)
            mark, rows = reader.tail(mark, query)


@trace.command()
@store_option
@_filters
@click.option("--format", "kind", type=click.Choice(["ndjson", "csv"]), default="ndjson", show_default=True)
@click.option("--json", "is_json", is_flag=True, help="The same as `--format ndjson`.")
@click.option("--output", type=click.File("w", encoding="utf-8", lazy=True), default="-", help="A file; `-` is stdout.")
def export(url: str, kind: str, is_json: bool, output: TextIO, **given: str | None) -> None:
    """Write all requests that match, newest first, as JSON lines or CSV.

    CSV holds the plain fields and the token counts; a text that a spreadsheet would run as a formula gets an
    apostrophe in front.
    """
    with saying_errors():
        reader, query = open_reader(url), _query(given, limit=str(MAX_LIMIT))
        kind = "ndjson" if is_json else kind
        is_first = True
        while True:
            rows, mark = reader.page(query)
            output.write(sheet(kind, rows, is_first=is_first))
            if mark is None:
                return
            query, is_first = replace(query, before=mark), False


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
        *([plain(row["pod"])[:40]] if "pod" in row else ()),
    )

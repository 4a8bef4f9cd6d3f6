"""`router status`: the state of a running router on one screen, or what one session has come to on one line."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any
from urllib.parse import urlencode

import click

from router.cli.admin import NoAnswer, admin_url, ask, needs, place_options
from router.cli.trace import dollars, plain, saying_errors, seconds
from router.errors import BadFilter
from router.settings import resolve
from router.trace.export import encode_json

_MOST_INPUT = 1024 * 1024  # characters of a status line's input that are read
_LINE_S = 2.0  # a status line is drawn again and again: it waits for nobody


@click.command()
@place_options
@click.option("--session", metavar="ID", help="One session of a client; `-` reads Claude Code's status line input.")
@click.option("--conversation", metavar="HASH", help="One conversation, by the hash in its traces.")
@click.option("--key", metavar="NAME", help="One key of the router's own, over the last day.")
@click.option("--tenant", metavar="NAME", help="The tenant of --session. Default: whoever asked lately.")
@click.option("--line", "is_line", is_flag=True, help="With --session, --conversation or --key: one line.")
@click.option("--json", "is_json", is_flag=True, help="Print a JSON object.")
def status(config: str | None, admin: str | None, is_line: bool, is_json: bool, **given: str | None) -> None:
    """Show how a running router does, and what to do about what is wrong.

    Exit code 0: healthy. 1: something is wrong, and said; or the router does not answer, or knows no such session.
    """
    with saying_errors():
        settings = resolve({}, os.environ, config).settings
        wanted = {name: value for name, value in given.items() if value is not None}
        what = [name for name in ("session", "conversation", "key") if name in wanted]
        if len(what) > 1 or ("tenant" in wanted and what != ["session"]) or (is_line and not what):
            raise BadFilter(
                "expected one of `--session`, `--conversation` and `--key`",
                hint="`--tenant` goes with `--session`, `--line` with any of them",
            )
        if wanted.get("session") == "-":
            wanted["session"] = _session_on_stdin()
        path = f"/session?{urlencode(wanted)}" if what else "/status"
        try:
            code, found = ask(
                admin or admin_url(settings), settings.admin_token, path, limit_s=_LINE_S if is_line else 30
            )
            if code == 200 and not needs(found, *(("model", "cost_usd") if what else ("problems", "recent"))):
                raise NoAnswer("something answered that is no admin listener of a router", "look at `--admin`")
        except NoAnswer as error:
            _give_up(error.message, error.hint, is_json=is_json, is_line=is_line)
    if code != 200:
        _give_up(found["message"], "", is_json=is_json, is_line=is_line)
    if is_json:
        click.echo(encode_json(found))
    elif is_line:
        click.echo(_line(found))
    elif what:
        click.echo("\n".join(_session(found)))
    else:
        click.echo("\n".join(_screen(found)))
    if not what and found["problems"]:
        sys.exit(1)


def _give_up(message: str, hint: str, *, is_json: bool, is_line: bool) -> None:
    """Say why there is nothing to show, in the form that was asked for; exit code 1."""
    if is_json:
        click.echo(encode_json({"is_healthy": False, "problems": [{"what": message, "next": hint}]}))
    elif is_line:
        click.echo("router: no figures yet" if not hint else "router: no answer")
    else:
        click.echo(plain(message), err=True)
        if hint:
            click.echo(f"hint: {hint}", err=True)
    sys.exit(1)


def _session_on_stdin() -> str:
    """The session in the JSON that a status line command is given. Raises BadFilter."""
    try:
        session = json.loads(sys.stdin.read(_MOST_INPUT))["session_id"]
    except (ValueError, TypeError, KeyError, RecursionError):
        session = None
    if not isinstance(session, str) or not session:
        raise BadFilter("standard input has no `session_id`, expected the JSON that Claude Code gives a status line")
    return session


def _line(found: Mapping[str, Any]) -> str:
    parts = [plain(found["model"] or "-"), f"${_money(found['cost_usd'])}"]
    if found["unknown_cost"]:
        parts[-1] += "+?"
    parts.append(f"saved ${_money(found['saved_usd'])}{_share(found['saved_share'], ' ({})')}")
    parts.append(f"{found['requests']:,} requests")
    if found["cache_hits"]:
        parts.append(f"{found['cache_hits']:,} from cache")
    return " · ".join(parts)


def _session(found: Mapping[str, Any]) -> Iterator[str]:
    model, asked, rule = (plain(found[name] or "-") for name in ("model", "model_asked", "rule"))
    first, last = found["first_at"][:19], found["last_at"][:19]
    saved, hits = _share(found["saved_share"], " ({})"), _share(found["cache_hit_share"], " ({} of what was looked up)")
    yield f"model      {model}  asked {asked}  rule {rule}"
    yield f"requests   {found['requests']:,}, {found['not_ok']:,} not ok; from {first} to {last} UTC"
    yield f"cost       {dollars(found['cost_usd'])} $, {found['unknown_cost']:,} of unknown cost"
    yield f"saved      {dollars(found['saved_usd'])} $ of {dollars(found['baseline_usd'])} ${saved}"
    yield f"cache      {found['cache_hits']:,} hits{hits}"
    yield f"tokens     {found['input_tokens']:,} in, {found['output_tokens']:,} out"
    yield f"last       {plain(found['last_trace_id'])}  {plain(found['outcome'])}"


def _screen(found: Mapping[str, Any]) -> Iterator[str]:
    recent, policy = found["recent"], found["policy"]
    state = "serving" if found["is_serving"] else "NOT SERVING"
    yield f"router     {state}, version {plain(found['version'])}, up {_age(found['uptime_s'])}"
    force = "the folder on disk" if policy["is_current"] else "NOT the folder on disk"
    if str(policy.get("source", "")).startswith("pushed"):  # absent in the answer of an older router
        force = plain(policy["source"])
    yield f"policies   {plain(policy['revision'])}, {force}, since {str(policy['loaded_at'] or '-')[:19]}"
    if policy["last_error"]:
        refused = plain(policy["last_error"].splitlines()[0])
        yield f"           refused at {str(policy['last_error_at'])[:19]}: {refused}"
    if fleet := policy.get("fleet"):
        yield f"fleet      {fleet['processes']:,} processes, {fleet['other_revision']:,} with other policies"
    over = f"last {_age(recent['over_s'])}"
    errors = f"{recent['errors']:,} errors of {recent['requests']:,}"
    yield f"requests   {recent['requests_per_min']:,} a minute, {errors} ({over})"
    own, ttft = (
        " / ".join(seconds(_float(recent[f"{name}_{rank}_s"])) for rank in ("p50", "p95"))
        for name in ("overhead", "ttft")
    )
    yield f"time       the router {own}, first token {ttft} (p50 / p95)"
    for name, money in (found["money"] or {}).items():
        share, unknown = _share(money["saved_share"], " ({})"), money["unknown_cost"]
        yield (
            f"{name:<9}  {dollars(money['cost_usd'])} $, saved {dollars(money['saved_usd'])} ${share}, "
            f"{money['requests']:,} requests{f', {unknown:,} of unknown cost' if unknown else ''}"
        )
    if not found["money"]:
        yield "money      not known: traces are off or cannot be asked"
    cache = found["cache"]
    hits = _share(cache["hit_share"], "{} hits") or "nothing looked up"
    yield f"cache      {plain(cache['kind'])}, {hits} ({over}){_held(cache)}"
    for name, link in found["redis"].items():
        up = "up" if link["is_up"] else "DOWN"
        failed, last = f"{link['failed']:,} of {link['asked']:,} failed", seconds(link["last_latency_us"] / 1e6)
        yield f"{plain(name):<9}  {up}, last reply {last}, {failed}"
    load = found.get("load") or {}  # absent in the answer of an older router
    if load:
        at_work, held_mb = f"{load['working']:,} at work, {load['streaming']:,} streams", load["body_bytes"] / 1e6
        yield f"load       {at_work}, {held_mb:,.1f} MB of bodies, {load['turned_away']:,} turned away since the start"
    pool = found["upstream"] or {}
    yield "upstream   " + ", ".join(f"{pool.get(name, 0):,} {name}" for name in ("open", "idle", "opening", "waiting"))
    for lane, ends in recent["lanes"].items():
        yield f"  {plain(lane):<9}" + ", ".join(f"{count:,} {plain(end)}" for end, count in ends.items())
    for each in found.get("breakers", ()):  # absent in the answer of an older router
        if each["state"] != "closed":
            wait = f", tried again in {each['open_for_s']:g} s" if each["state"] == "open" else ""
            yield f"breaker    {plain(each['lane'])} ({plain(each['model'])}): {each['state']}{wait}"
    yield from _sinks(found)
    for title, notes in (("wrong", found["problems"]), ("look at", found["warnings"])):
        for note in notes:
            yield f"{title:<9}  {plain(note['what'])}"
            yield f"           -> {plain(note['next'])}"
    if not found["problems"]:
        yield "healthy"


def _sinks(found: Mapping[str, Any]) -> Iterator[str]:
    traces, capture = found["traces"], found["capture"]
    if traces is None:
        yield "traces     off"
    else:
        yield f"traces     {traces['queued']:,} queued, {traces['stored']:,} stored, {traces['dropped']:,} dropped"
    if capture["setting"] != "off":
        counts = ", ".join(f"{capture.get(name, 0):,} {name}" for name in ("queued", "stored", "dropped", "redacted"))
        yield f"capture    {plain(capture['setting'])}: {counts}"


def _held(cache: Mapping[str, Any]) -> str:
    entries = cache.get("entries", cache.get("near_entries"))
    size = cache.get("bytes", cache.get("near_bytes"))
    return "" if entries is None or size is None else f", {entries:,} answers in memory, {size / 1e6:,.1f} MB"


def _money(value: Decimal | None) -> str:
    """Dollars for a line: cents, and more places for what is less than one."""
    if value is None:
        return "?"
    return f"{value:,.2f}" if abs(value) >= 1 or value == 0 else f"{value:.4f}"


def _share(value: Any, form: str) -> str:
    return "" if value is None else form.format(f"{float(value):.0%}")


def _float(value: Any) -> float | None:
    return None if value is None else float(value)


def _age(span_s: Any) -> str:
    left, parts = int(span_s), []
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2]) or "0 s"

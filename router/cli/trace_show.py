"""One trace as a page of text, and what was captured of it: `router trace show`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from router.cli.admin import NoAnswer, admin_url, ask, needs
from router.cli.trace import dollars, plain, seconds
from router.errors import TraceStoreError
from router.jobs.decision import DecisionReader, ItemDecision
from router.redis_link import RedisLink
from router.settings import Settings, resolve
from router.stores import decisions_file, open_decisions

_TOKENS = (
    "input_tokens",
    "cache_read_input_tokens",
    "cache_write_5m",
    "cache_write_1h",
    "output_tokens",
    "thinking_tokens",
)
_MOST_ITEMS = 20  # of a batch are shown
_BAR = 40  # characters of the widest bar of a waterfall


def content_of(some_id: str, config: str | None, admin: str | None) -> dict[str, Any]:
    """What a router's admin listener has captured of a request. Raises SettingsError, and TraceStoreError for none."""
    settings = resolve({}, os.environ, config).settings
    try:
        status, found = ask(
            admin or admin_url(settings), settings.admin_token, f"/traces/{quote(some_id, safe='')}/content"
        )
    except NoAnswer as error:
        raise TraceStoreError(error.message, hint=error.hint) from error
    if status != 200:
        raise TraceStoreError(found["message"], hint="`router status` shows what is captured")
    if not needs(found, "contents"):
        raise TraceStoreError("something answered that is no admin listener of a router", hint="look at `--admin`")
    return found


def told_content(found: dict[str, Any]) -> Iterator[str]:
    """Captured content as text. What would move the cursor of a terminal is spelled out; line ends are kept."""
    for each in found["contents"]:
        yield f"trace {plain(each['trace_id'])}  {each['started_at']}  {each['redacted']} places taken out"
        for name in ("request", "answer"):
            cut = ", cut" if each[f"{name}_is_cut"] else ""
            yield ""
            yield f"{name}, {each[f'{name}_bytes']:,} bytes{cut}"
            yield from (plain(line) for line in each[name].splitlines())


def batch_items(batch: str, url: str, config: str | None) -> list[tuple[str, ItemDecision]]:
    """What was decided about the first items of a batch, by the store of `jobs`; none where that has nothing of it.

    `url` is the trace store, beside which decisions are kept where the settings name no other place. Raises
    SettingsError.
    """
    settings = replace(resolve({}, os.environ, config).settings, traces=url)
    file = decisions_file(settings)
    if file is not None and not file.exists():
        return []
    return asyncio.run(_batch_items(batch, settings))


async def _batch_items(batch: str, settings: Settings) -> list[tuple[str, ItemDecision]]:
    links: dict[str, RedisLink] = {}
    store, reader = open_decisions(settings, links), DecisionReader()
    try:
        entries = await store.some(batch, _MOST_ITEMS)
        names = reader.missing(entries.values())
        reader.share(names, await store.of(batch, names) or {})
    finally:
        await store.close()
        for link in links.values():
            await link.close()
    found = ((name, reader.decision(entry)) for name, entry in entries.items())
    return [(name, decision) for name, decision in found if decision is not None]


def told_items(items: list[tuple[str, ItemDecision]], count: object) -> Iterator[str]:
    """The first items of a batch as text."""
    yield from _section(
        "items",
        [
            f"{plain(name)}  {plain(one.model_asked)} -> {plain(one.model_sent)}  lane {plain(one.lane)}  "
            f"rule {plain(one.rule)}" + (f"  edits {plain(', '.join(one.edits))}" if one.edits else "")
            for name, one in items
        ],
    )
    if isinstance(count, int) and count > len(items) > 0:
        yield f"  the first {len(items)} of {count:,} by name; `router trace ls --batch` lists those that were fetched"


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


def told(row: dict[str, Any]) -> Iterator[str]:
    """One trace as a page of text."""
    yield f"trace {row['trace_id']}  request {plain(row['request_id'] or '-')}"
    yield f"{row['started_at']}  {plain(row['method'])} {plain(row['path'])}  {row['status']} {plain(row['outcome'])}"
    if row["error_type"] or row["error_code"]:
        yield f"error {plain(row['error_type'] or '-')} {plain(row['error_code'] or '')}".rstrip()
    form = "streamed" if row["is_streaming"] else "plain"
    tenant, key, client = (plain(row[name] or "-") for name in ("tenant", "key", "client"))
    yield f"endpoint {plain(row['endpoint'])}, {form}  tenant {tenant}  key {key}  client {client}"
    if row["conversation"] or row["session"]:
        yield f"conversation {plain(row['conversation'] or '-')}  session {plain(row['session'] or '-')}"
    if row["batch"]:
        yield f"batch {plain(row['batch'])}"
    if row["batch_lines"]:
        yield "results " + ", ".join(f"{count:,} {plain(kind)}" for kind, count in row["batch_lines"].items())
    yield ""
    yield "route"
    answered = row["model_answered"]
    named = f", answered as {plain(answered)}" if answered and answered != row["model_sent"] else ""
    yield f"  {plain(row['model_asked'])} -> {plain(row['model_sent'])}{named}  lane {plain(row['lane'] or '-')}"
    yield f"  policy {plain(row['policy'])}@{plain(row['revision'])}  rule {plain(row['rule'] or '-')}"
    if row["labels"]:
        yield "  labels " + "  ".join(f"{plain(name)}={plain(value)}" for name, value in row["labels"].items())
    if row["tags"]:
        yield "  tags " + ", ".join(map(plain, row["tags"]))
    if row["edits"]:
        yield "  edits " + ", ".join(map(plain, row["edits"]))
    yield from _section("why", [plain(reason) for reason in row["why"]])
    yield from _section("conversation", list(_conversation(row["affinity"])))
    yield from _section("cache", [_cache(row)])
    yield from _section("attempts", [_attempt(attempt) for attempt in row["attempts"]])
    usage = row["usage"]
    if usage is not None:
        yield from _section("usage", list(_usage(usage, row["stop_reason"])))
    yield from _section("facts", [f"{plain(name)} = {plain(value)}" for name, value in (row["facts"] or {}).items()])
    asked, prices = plain(row["model_asked"]), plain(row["price_version"])
    yield from _section(
        "money",
        [
            f"cost      {dollars(row['cost_usd']):>14}",
            f"baseline  {dollars(row['baseline_usd']):>14}  the same usage at {asked}",
            f"saved     {dollars(row['saved_usd']):>14}  cache {plain(row['cache'])}, prices {prices}",
            *_prompt_cache(row),
        ],
    )
    yield from _section("time", list(_waterfall(row)))


def _cache(row: dict[str, Any]) -> str:
    """What the cache did, and why not more."""
    cache, reason = plain(row["cache"]), plain(row["cache_reason"] or "")
    if row["is_stored"]:
        return f"{cache}, the answer was stored"
    if not reason:
        return cache
    return f"{cache}, {'not looked up' if row['cache'] == 'bypass' else 'the answer was not kept'}: {reason}"


def _usage(usage: dict[str, Any], stop_reason: str | None) -> Iterator[str]:
    counted = [f"{name} {usage[name]:,}" for name in _TOKENS if usage.get(name)]
    yield from counted or ["none"]
    named = [
        f"{name} {plain(usage[name])}" for name in ("web_searches", "service_tier", "geo", "speed") if usage.get(name)
    ]
    if named:
        yield "  ".join(named)
    for iteration in usage.get("iterations") or ():
        tokens = ", ".join(f"{name} {iteration[name]:,}" for name in _TOKENS if iteration.get(name))
        yield f"iteration {plain(iteration.get('type'))} {plain(iteration.get('model') or '')}: {tokens}"
    if not usage.get("is_final", True):
        yield "cut before its end: the output is at least this"
    if stop_reason:
        yield f"stopped: {plain(stop_reason)}"


def _prompt_cache(row: dict[str, Any]) -> Iterator[str]:
    """What the provider's prompt cache did to the cost; said only where it did something."""
    read, write = row.get("prompt_cache_read_saved_usd"), row.get("prompt_cache_write_extra_usd")
    if read or write:
        yield f"in the cost: prompt cache reads saved {dollars(read)}, its writes cost {dollars(write)} more"


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
    if attempt.get("retry_after_s") is not None:
        parts.append(f"retry after {attempt['retry_after_s']:g} s")
    if attempt.get("first_byte_s") is not None:
        parts.append(f"first byte at {seconds(attempt['first_byte_s'])}")
    if attempt.get("is_resent"):
        parts.append("sent twice")
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

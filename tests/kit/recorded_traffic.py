"""Made-up traces of routed traffic, written as the store writes them, and two folders of policies to hold against it.

Conversations of 1 to 20 turns, 200 at a time; prompt caches of five minutes and an hour; models without a price;
labels, headers and languages that some traces do not have; cache hits, overloads, records without facts. Where
revisions are named, half of the requests were served by one of them: denied, kept out of lanes, under rules it has not.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from router.catalog.lookup import Catalog
from router.catalog_file import load_catalog
from router.facts.inspect import Facts
from router.serve.ledger import book
from router.trace.record import Attempt, Trace
from router.trace.rows import row_of
from router.trace.schema import COLUMNS, migrate
from router.usage import Tokens, Usage

LANES = """version: 1
lanes:
  haiku: {model: claude-haiku-5-5, fallback: sonnet}
  sonnet: {model: claude-sonnet-5-5}
  small: {model: SMALL}
default_lane: sonnet
"""
OLD = """version: 1
rules:
  - {name: banned, when: {user: mallory}, deny: "no"}
  - {name: long, when: {input_tokens: {gt: 90000}}, route: as-asked}
  - {name: easy, when: {task: {in: [classification, extraction, chat]}, p_hard: {lt: 0.5}}, route: [haiku, sonnet]}
  - {name: hard, when: {requested_line: {in: [haiku, sonnet]}, p_hard: {gte: 0.5}}, route: sonnet}
otherwise: as-asked
"""
NEW = """version: 1
rules:
  - {name: banned, when: {any: [{user: {in: [mallory, trudy]}}, {task: knowledge, images: {gt: 5}}]}, deny: "no"}
  - {name: team, when: {header.x-team: blue, not: {stream: true}}, route: small, swap: adapt, stick: none}
  - {name: german, when: {language: de, turns: {gt: 6}}, route: haiku, stick: move}
  - {name: canary, when: {task: chat}, split: {haiku: 80, small: 20}}
  - {name: cheap, when: {p_hard: {lt: 0.6}}, route: [haiku, small], stick: {economic: {turns: 4}}}
  - {name: tools, when: {tool_names: {contains: look_up}, client: claude-code}, route: sonnet, swap: {adapt: [effort]}}
otherwise: as-asked
"""
TASKS = ("classification", "extraction", "chat", "reasoning", "coding", "knowledge")
MODELS = ("claude-sonnet-5-5", "claude-opus-5-5", "claude-haiku-5-5", "claude-sonnet-4-6", "auto", "lane:small", "mine")
_INSERT = f"INSERT INTO traces ({','.join(COLUMNS)}) VALUES ({','.join('?' * len(COLUMNS))})"


def folders(where: Path) -> tuple[Path, Path]:
    """Two folders of policies that differ in rules and in the model of a lane."""
    for name, rules, small in (("old", OLD, "claude-haiku-4-5"), ("new", NEW, "claude-haiku-5-5")):
        (where / name).mkdir(parents=True)
        (where / name / "lanes.yaml").write_text(LANES.replace("SMALL", small))
        (where / name / "default.yaml").write_text(rules)
    return where / "old", where / "new"


def make_store(path: Path, count: int, seed: int = 1, revisions: tuple[str, ...] = ()) -> None:
    """A trace store with `count` made-up Messages requests of about a week, and a few of another endpoint.

    Half of them were served by one of `revisions`; a single one has served them all.
    """
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        migrate(connection, 0)
        connection.execute("BEGIN")
        connection.executemany(_INSERT, (row_of(trace) for trace in traces(count, seed, revisions)))
        connection.execute("COMMIT")


def traces(count: int, seed: int, revisions: tuple[str, ...] = ()) -> Iterator[Trace]:
    """Requests of 200 conversations at a time, in the order of their start."""
    dice, catalog = random.Random(seed), load_catalog()
    others = random.Random(seed)  # so that the requests are the same whatever served them
    talks = [_talk(dice) for _ in range(200)]
    now_ns = 1_790_000_000 * 10**9
    for number in range(count):
        now_ns += dice.randrange(10**9)
        at = dice.randrange(len(talks))
        talks[at]["turn"] += 1
        trace = _trace(talks[at], number, now_ns, dice, catalog)
        if len(revisions) == 1 or (revisions and trace.policy == "default" and others.random() < 0.5):
            _serve(trace, others.choice(revisions), others)
        yield trace
        if talks[at]["turn"] >= talks[at]["turns"]:
            talks[at] = _talk(dice)
        if number % 500 == 0:
            yield Trace(f"{number:032x}", now_ns, endpoint="count_tokens", policy="default")


def _serve(trace: Trace, revision: str, dice: random.Random) -> None:
    """The trace as that revision may have made it; what it names need not be what its rules say today."""
    trace.revision, trace.policy = revision, "default"
    trace.rule = dice.choice(("banned", "easy", "hard", "team", "german", "cheap", "otherwise", "one it has not"))
    if dice.random() < 0.1:
        trace.why = (*trace.why, "lane `small` kept out: `max_tokens` is too large; the prompt is too long")
    if trace.rule == "banned":
        trace.status, trace.outcome, trace.error_type, trace.cache = 403, "client_error", "permission_error", "bypass"
        trace.lane = trace.model_sent = ""
        trace.model_answered = trace.usage = None
        trace.cost_pusd = trace.baseline_pusd = trace.saved_pusd = 0
        trace.attempts = []
    elif dice.random() < 0.3:
        trace.lane = "sonnet"  # a fallback, or the lane where its conversation was


def _talk(dice: random.Random) -> dict[str, Any]:
    task = dice.choice(TASKS)
    is_hard = task in TASKS[3:]
    return {
        "id": f"{dice.getrandbits(128):032x}",
        "turn": 0,
        "turns": 1 if dice.random() < 0.5 else dice.randint(1, 20),
        "asked": dice.choices(MODELS, (40, 15, 10, 15, 8, 2, 2))[0],
        "labels": None
        if dice.random() < 0.03
        else {
            "task": task,
            "difficulty": round(dice.random(), 4),
            "confidence": 0.9,
            "p_hard": round(dice.uniform(0.4, 1) if is_hard else dice.uniform(0, 0.7), 4),
        },
        "cache": dice.choices((None, "5m", "1h"), (60, 30, 10))[0],
        "prompt": int(dice.lognormvariate(7, 1.5)),
        "client": dice.choice(("python-sdk", "claude-code", "curl")),
        "class": dice.choice((None, None, "main", "subagent")),
        "tool_names": dice.choices(((), ("look_up", "write"), tuple(f"tool_{n}" for n in range(60))), (60, 30, 10))[0],
        "thinking": dice.choice((None, None, None, "adaptive", "enabled", "disabled")),
        "effort": dice.choice((None, None, None, "low", "high", "max")),
        "max_tokens": dice.choice((64, 500, 2000, 4096, 8192, 100_000)),
        "user": dice.choice((None, None, "alice", "trudy", "mallory")),
        "headers": dice.choice(((), ("x-team",), ("x-team",))),
        "x-team": dice.choice((None, "blue", "red")),
        "language": dice.choice(("", "de", "en", None)),
        "policy": dice.choices(("default", "gone"), (96, 4))[0],
    }


def _trace(talk: dict[str, Any], number: int, now_ns: int, dice: random.Random, catalog: Catalog) -> Trace:
    turn, asked = talk["turn"], talk["asked"]
    model = catalog.find(asked)
    grown = talk["prompt"] + turn * dice.randint(50, 800)
    facts = Facts(
        requested_model=asked,
        requested_line=None if model is None else model.line,
        input_tokens=grown,
        max_tokens=talk["max_tokens"],
        messages=2 * turn - 1,
        turns=turn,
        stream=number % 3 == 0,
        tools=len(talk["tool_names"]),
        tool_names=talk["tool_names"],
        forced_tool=bool(talk["tool_names"]) and number % 7 == 0,
        structured_output=number % 11 == 0,
        images=dice.choices((0, 1, 7, 120), (85, 8, 5, 2))[0],
        documents=int(number % 23 == 0),
        thinking=talk["thinking"],
        effort=talk["effort"],
        conversation="new" if turn == 1 else "warm",
        client=talk["client"],
        request_class=talk["class"],
        user=talk["user"],
        tenant="acme",
        betas=("context-1m-2025-08-07",) if number % 13 == 0 else (),
        headers={} if talk["x-team"] is None else {"x-team": talk["x-team"]},
    )
    if talk["language"] != "":
        facts._language, facts._has_language = talk["language"], True
    labels = talk["labels"]
    is_easy = labels is not None and labels["p_hard"] < 0.5
    sent = "claude-haiku-5-5" if is_easy else "claude-sonnet-5-5" if model is None and asked != "mine" else asked
    trace = Trace(
        trace_id=f"{number:032x}", started_at_ns=now_ns, endpoint="messages", method="POST", path="/v1/messages",
        tenant="acme", client=talk["client"], conversation=talk["id"], policy=talk["policy"], revision="0" * 12,
        rule="easy" if is_easy else "otherwise", why=("rule `easy`: matched",), labels=labels, model_asked=asked,
        model_sent=sent, lane="haiku" if is_easy else "as-asked", duration_s=1.5, status=200, stop_reason="end_turn",
    )  # fmt: skip
    chance = dice.random()
    trace.facts = None if chance < 0.002 else facts.recorded(talk["headers"])
    if 0.01 < chance < 0.03:
        trace.status, trace.outcome, trace.error_type = 529, "upstream_error", "overloaded_error"
        trace.attempts = [Attempt(trace.lane, sent, 0.0, "overloaded", 529)]
        book(trace, catalog)
        return trace
    tokens = Tokens(input=grown, output=dice.randint(5, 900))
    if talk["cache"] is not None and grown > 1024:
        fresh = dice.randint(20, 400)
        is_warm = turn > 1 and dice.random() < 0.85
        written = "cache_write_1h" if talk["cache"] == "1h" else "cache_write_5m"
        counts = {"cache_read": grown - fresh, written: fresh} if is_warm else {written: grown}
        tokens = Tokens(input=dice.randint(3, 50), output=tokens.output, **counts)
    geo = "us" if number % 50 == 0 else None
    usage = Usage(tokens, web_searches=int(number % 97 == 0), service_tier="standard", geo=geo)
    trace.usage, trace.model_answered = usage, sent
    if chance > 0.95:
        trace.cache = "hit"
        book(trace, catalog, is_hit=True)
    else:
        trace.cache = "miss"
        trace.attempts = [Attempt(trace.lane, sent, 0.0, "ok", 200, 0.3, 1.4, usage=usage)]
        book(trace, catalog)
    return trace

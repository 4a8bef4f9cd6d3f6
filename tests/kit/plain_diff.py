"""What `router policy diff` works out, worked out slowly: a row at a time, nothing remembered but conversations.

It shares no code with `router.policy.diff`, `forecast`, `moved` and `unsure`; the router's own parts that both ask
(`can_serve`, `hold`, `bound`, the prices) have tests of their own.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from router.affinity.binding import bound
from router.affinity.economics import tokens_ratio
from router.affinity.keep import hold
from router.catalog.lookup import Catalog
from router.classify.label import Label
from router.facts.inspect import Facts
from router.facts.vocabulary import LABEL_FACTS
from router.policy.compile import AS_ASKED_LANE, PolicySet
from router.policy.decide import decide
from router.swap.check import can_serve
from router.usage import Tokens, Usage
from router.wire.messages import read_request


def plainly(store: Path, old: PolicySet, new: PolicySet, catalog: Catalog) -> dict[str, Any]:
    """The figures of `Comparison.result` that can be told without its code; money in pico-dollars."""
    with closing(sqlite3.connect(store)) as connection:
        connection.row_factory = sqlite3.Row
        rows = connection.execute("SELECT * FROM traces WHERE endpoint = 'messages' ORDER BY started_at_ns").fetchall()
    counts: Counter[str] = Counter()
    lacking: Counter[str] = Counter()
    money: Counter[str] = Counter()
    rules: dict[tuple[str, str, str], Counter[str]] = {}
    memory: tuple[dict[Any, Any], dict[Any, Any]] = ({}, {})
    for row in rows:
        counts["requests"] += 1
        results = [_one(row, side, catalog, memory[at]) for at, side in enumerate((old, new))]
        missing = [result for result in results if isinstance(result, str)]
        if missing:
            lacking[missing[0]] += 1
            continue
        a, b = results
        counts["compared"] += 1
        other_model = _id(a["model"], catalog) != _id(b["model"], catalog)
        moved = a["lane"] != b["lane"] or other_model
        counts["lane_changes"] += moved
        counts["model_changes"] += other_model
        counts["warm_caches_lost"] += moved and a["reads"] is True and not b["reads"]
        counts["warm_caches_won"] += moved and b["reads"] is True and not a["reads"]
        group = rules.setdefault((row["policy"], a["rule"], b["rule"]), Counter())
        group["requests"] += 1
        group["lane_changes"] += moved
        for side, result in (("old", a), ("new", b)):
            counts[f"{side}_refused"] += bool(result["refused"])
            counts[f"{side}_as_recorded"] += result["is_recorded"]
        if None in (a["cost"], b["cost"], a["baseline"], b["baseline"]):
            counts["unknown_cost"] += 1
            continue
        for side, result in (("old", a), ("new", b)):
            money[f"{side}_cost"] += result["cost"]
            money[f"{side}_baseline"] += result["baseline"]
            money[f"{side}_estimated"] += result["cost"] if result["is_estimate"] else 0
            group[f"{side}_cost"] += result["cost"]
    return {"counts": +counts, "lacking": +lacking, "money": +money, "rules": rules}


def _one(row: sqlite3.Row, policies: PolicySet, catalog: Catalog, memory: dict[Any, Any]) -> Any:
    """One request on one side: a dict, or the name of what is missing. `memory`: conversation → its state."""
    record = None if row["facts"] is None else json.loads(row["facts"])
    request_class = "" if record is None else record["request_class"] or ""
    key = row["conversation"], row["policy"], row["model_asked"], request_class
    state = memory.setdefault(key, {"binding": None, "warm": {}, "hour": False})
    is_hit = row["cache"] == "hit"
    usage = None
    if row["usage"] is not None:
        seen = json.loads(row["usage"])
        counts = [
            row[f"{name}_tokens"] for name in ("input", "cache_read", "cache_write_5m", "cache_write_1h", "output")
        ]
        usage = Usage(Tokens(*counts), 0, seen["web_searches"], (), seen["service_tier"], seen["geo"], seen["speed"])
        if not is_hit and usage.tokens.cache_write_1h:
            state["hour"] = True
        elif not is_hit and usage.tokens.cache_write_5m:
            state["hour"] = False
    if row["revision"] == policies.revision:
        return _happened(row, policies, usage, state)
    if record is None:
        state["binding"] = "?"
        return "facts"
    facts = Facts.given(record)
    facts._conversation_key = row["conversation"]
    policy = policies.policies.get(row["policy"])
    stopped = {"rule": "", "lane": "unknown target", "model": "", "cost": 0, "baseline": 0, "is_estimate": False}
    stopped |= {"reads": None, "refused": [], "is_recorded": False}
    if policy is None:
        return stopped
    labels = json.loads(row["labels"]) if row["labels"] else None
    label = Label(**labels) if labels else None
    for rule in policy.rules:
        values = [_truth(clause, record, facts, label) for clause in rule.clauses]
        if False not in values:
            break
    unknown = [value for value in values if isinstance(value, str)]
    if unknown:
        state["binding"] = "?"
        return unknown[0]
    alone = replace(policy, rules=(replace(rule, clauses=(), counted=(), labelled=()),), made={})
    decision = decide(alone, facts)
    if decision.deny is not None:
        return stopped | {"rule": rule.name, "lane": "denied"}
    asked, now_s = row["model_asked"], row["started_at_ns"] / 1e9
    is_virtual = asked == "auto" or asked.startswith("lane:")
    meant = policies.default_lane.model if is_virtual else asked
    route = list(decision.route)
    if asked.startswith("lane:"):
        route = [policies.lanes[asked[5:]]]
    elif record["conversation"] != "new" and state["binding"] is not None:
        if state["binding"] == "?":
            if decision.stick in ("conversation", "economic"):
                state["binding"] = "?"
                return "an earlier turn"
        else:
            found = hold(
                decision, state["binding"], wanted=route[0].model or meant, asked=meant, lanes=policies.lanes,
                catalog=catalog, now_s=now_s,
            )  # fmt: skip
            if found.lane is not None:
                route = [found.lane, *route]
    refused = []
    lane, model = (policies.default_lane, meant) if is_virtual else (AS_ASKED_LANE, asked)
    for candidate in route:
        target = candidate.model or meant
        if target != asked and asked != f"lane:{candidate.name}" and not _may(record, asked, target, decision, catalog):
            if candidate.name not in refused:
                refused.append(candidate.name)
            continue
        lane, model = candidate, target
        break
    result = {
        "rule": rule.name,
        "lane": lane.name,
        "model": model,
        "baseline": row["baseline_pusd"],
        "refused": refused,
        "is_recorded": False,
    }
    has_read = usage is not None and not is_hit and usage.tokens.cache_read > 0
    result |= {"cost": row["cost_pusd"], "is_estimate": False, "reads": True if has_read else None}
    if is_hit:
        result["cost"] = 0
    elif _id(model, catalog) != _id(row["model_sent"], catalog):
        result |= {"cost": None, "reads": None}
        if usage is not None:
            is_warm = now_s < state["warm"].get(model, 0)
            usage = _converted(usage, row["model_sent"], model, is_warm, state["hour"], catalog)
            result |= {"cost": catalog.cost(usage, model), "is_estimate": True, "reads": is_warm if has_read else None}
    _answered(row, result, usage, decision.stick, state)
    return result


def _happened(row: sqlite3.Row, policies: PolicySet, usage: Usage | None, state: dict[str, Any]) -> dict[str, Any]:
    """What the trace says that was done: nothing is worked out."""
    rules = [rule for rule in policies.policies[row["policy"]].rules if rule.name == row["rule"]]
    is_denied = bool(rules) and rules[0].deny is not None
    result = {"rule": row["rule"], "lane": "denied" if is_denied else row["lane"], "model": row["model_sent"]}
    result["cost"] = row["cost_pusd"]
    result |= {"baseline": row["baseline_pusd"], "is_estimate": False, "is_recorded": True, "reads": None}
    has_read = usage is not None and usage.tokens.cache_read > 0 and row["cache"] != "hit"
    if has_read:
        result["reads"] = True
    why = json.loads(row["why"]) if row["why"] else []
    result["refused"] = [sentence for sentence in why if "` kept out: " in sentence]
    _answered(row, result, usage, rules[0].stick if rules else "conversation", state)
    return result


def _answered(row: sqlite3.Row, result: dict[str, Any], usage: Usage | None, stick: str, state: dict[str, Any]) -> None:
    """The conversation after a request: what it is bound to, and where its prompt is cached."""
    if row["outcome"] != "ok" or usage is None or not result["model"]:
        return
    now_s, is_hit = row["started_at_ns"] / 1e9, row["cache"] == "hit"
    if stick != "none":
        before = None if state["binding"] == "?" else state["binding"]
        state["binding"] = bound(
            before, lane=result["lane"], model=result["model"], usage=None if is_hit else usage, now_s=now_s
        )
    tokens = usage.tokens
    if not is_hit and tokens.cache_read + tokens.cache_write_5m + tokens.cache_write_1h:
        state["warm"][result["model"]] = now_s + (3600 if state["hour"] else 300)


def _truth(clause: Any, record: dict[str, Any], facts: Facts, label: Label | None) -> bool | str:
    """True, False, or the name of what would have to be known."""
    if clause.parts:
        parts = [[_truth(inner, record, facts, label) for inner in part] for part in clause.parts]
        wholes = [False if False in part else next((v for v in part if isinstance(v, str)), True) for part in parts]
        if clause.operator == "not":
            return wholes[0] if isinstance(wholes[0], str) else not wholes[0]
        return True if True in wholes else next((value for value in wholes if isinstance(value, str)), False)
    name = clause.fact
    if name in LABEL_FACTS:
        return name if label is None else clause.check(facts, label)
    if name != "user" and name not in record:
        return name
    if name == "tool_names" and len(record[name]) >= 50:
        return name
    return clause.check(facts, label)


def _may(record: dict[str, Any], asked: str, target: str, decision: Any, catalog: Catalog) -> bool:
    content: list[Any] = [{"type": "text", "text": "Hello"}]
    content += [{"type": "image", "source": {}} for _ in range(record["images"])]
    content += [{"type": "document", "source": {}} for _ in range(record["documents"])]
    body: dict[str, Any] = {"model": asked, "max_tokens": record["max_tokens"], "stream": record["stream"]}
    body["messages"] = [{"role": "user", "content": content}]
    if record["thinking"]:
        body["thinking"] = {"type": record["thinking"]}
        if record["thinking"] == "enabled":
            body["thinking"]["budget_tokens"] = 1024
    config = {"effort": record["effort"]} if record["effort"] else {}
    if record["structured_output"]:
        config["format"] = {"type": "json_schema", "schema": {"type": "object"}}
    if config:
        body["output_config"] = config
    if record["tools"]:
        body["tools"] = [{"name": name, "input_schema": {"type": "object"}} for name in record["tool_names"]]
    if record["forced_tool"]:
        body["tool_choice"] = {"type": "any"}
    is_virtual = asked == "auto" or asked.startswith("lane:")
    verdict = can_serve(
        read_request(json.dumps(body).encode()), catalog.find(target),
        asked=None if is_virtual else catalog.find(asked),
        api_version="2023-06-01", betas=tuple(record["betas"]), input_tokens=record["input_tokens"],
        edits=decision.edits,
    )  # fmt: skip
    return verdict.is_ok


def _converted(usage: Usage, source: str, target: str, is_warm: bool, is_hour: bool, catalog: Catalog) -> Usage:
    ratio = tokens_ratio(source, target, catalog)
    was = usage.tokens
    input_, read, five, hour, output = (
        round(count * ratio)
        for count in (was.input, was.cache_read, was.cache_write_5m, was.cache_write_1h, was.output)
    )
    model = catalog.find(target)
    if model is not None and read + five + hour < model.min_cacheable_tokens:
        input_, read, five, hour = input_ + read + five + hour, 0, 0, 0
    if not is_warm:
        hour, five, read = (hour + read, five, 0) if is_hour else (hour, five + read, 0)
    tokens = Tokens(input_, read, five, hour, output)
    return Usage(tokens, 0, usage.web_searches, (), usage.service_tier, usage.geo, usage.speed)


def _id(model: str, catalog: Catalog) -> str:
    known = catalog.find(model)
    return model if known is None else known.id


def figures(found: dict[str, Any]) -> dict[str, Any]:
    """What `router policy diff --json` printed, in the form of `plainly`."""
    names = (
        "requests",
        "compared",
        "lane_changes",
        "model_changes",
        "warm_caches_lost",
        "warm_caches_won",
        "unknown_cost",
    )
    counts = Counter({name: found[name] for name in names})
    money: Counter[str] = Counter()
    for side in ("old", "new"):
        counts[f"{side}_refused"] = found[side]["swap_refused_requests"]
        counts[f"{side}_as_recorded"] = found[side]["as_recorded"]
        for name in ("cost", "baseline"):
            money[f"{side}_{name}"] = _pusd(found[side][f"{name}_usd"])
        money[f"{side}_estimated"] = _pusd(found[side]["estimated_cost_usd"])
    rules = {}
    for row in found["rules"]:
        group = Counter({name: row[name] for name in ("requests", "lane_changes")})
        group |= {f"{side}_cost": _pusd(row[side]["cost_usd"]) for side in ("old", "new")}
        rules[row["policy"], row["old_rule"], row["new_rule"]] = group
    return {"counts": +counts, "lacking": Counter(found["undecided_for_lack_of"]), "money": +money, "rules": rules}


def _pusd(dollars: Any) -> int:
    return int(dollars.scaleb(12)) if hasattr(dollars, "scaleb") else int(dollars * 10**12)

"""The keys and operators of the policy language, declared once: the parser, the JSON Schema and the docs read this."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from router.facts.vocabulary import LABEL_FACTS, FactSpec, Kind
from router.swap.edits import EDITS

VERSION = 1
AS_ASKED = "as-asked"
OTHERWISE = "otherwise"  # the rule name in decisions that no rule made
RESERVED_LANES = (AS_ASKED, "auto", OTHERWISE)
NAME_PATTERN = "[a-z0-9][a-z0-9._-]{0,63}"  # of lanes, rules and policies: they travel in headers and addresses
MAX_RULES = 1000
MAX_TESTS = 500
MAX_RETRIES = 5
MAX_WEIGHT = 1_000_000
MAX_CACHE_BYTES = 64 * 1024 * 1024
MAX_TTL_S = 30 * 86400  # a store that several processes share keeps an entry no longer
MAX_PACE_S = 1.0
MIN_CACHE_S = 0.001  # of both: clocks and stores count no finer
MIN_DEFERRED_S = 0.001
MAX_DEFERRED_S = 86400.0  # a Message Batch that took longer has expired
MAX_DEFERRED_ITEMS = 10_000  # of one batch, whose bytes are bounded too

Shape = Literal[
    "version", "name", "text", "texts", "rules", "tests", "lanes", "lane", "model", "route", "weights", "condition",
    "cache", "duration", "size", "count", "swap", "stick", "scope", "request", "given", "expect",
    "economic", "turns", "edits", "temperature", "flag", "retry", "timeout", "on_timeout", "deferred", "deferring",
    "items",
]  # fmt: skip

SWAP = ("strict", "adapt")
STICK = ("conversation", "economic", "move", "none")
SCOPE = ("tenant", "shared")
ON_TIMEOUT = ("stop", "fallback")
DEFERRING = ("allow", "deny", "require")
DEFAULT_TURNS = 5  # within which `stick: economic` must earn back what a switch costs
MAX_TURNS = 1000


@dataclass(frozen=True, slots=True)
class KeySpec:
    """One key of a mapping: its name, the shape of its value, what it means."""

    name: str
    shape: Shape
    meaning: str
    is_required: bool = False


POLICY_KEYS = (
    KeySpec("version", "version", "Version of the language: 1.", True),
    KeySpec("rules", "rules", "Read from top to bottom; the first rule that matches decides.", True),
    KeySpec(
        OTHERWISE, "route", "Where a request goes that no rule matches: a lane, a list of lanes, or `as-asked`.", True
    ),
    KeySpec("tests", "tests", "Examples that must hold before the policy is used."),
)

RULE_KEYS = (
    KeySpec("name", "name", "What headers, traces and reports call the rule.", True),
    KeySpec("when", "condition", "Facts that must all hold; left out, the rule always matches."),
    KeySpec("route", "route", "A lane, a list of lanes (the first is tried first, then the next), or `as-asked`."),
    KeySpec("split", "weights", "Lanes with weights instead of `route`; a conversation always falls on the same lane."),
    KeySpec("deny", "text", "Refuse the request with this message instead of routing it."),
    KeySpec("retry", "retry", "How often a lane that refused is asked again, all lanes of a request together; 0 to 5, "
            "default 0. Or `{times: 2, on_timeout: fallback}`."),
    KeySpec("timeout", "timeout", "Longest wait for the first byte of an answer, such as `30s`; or by phase, "
            "`{connect: 1s, first_byte: 30s, idle: 60s, total: 5m}`."),
    KeySpec("cache", "cache", "Keep and replay complete answers; left out, nothing is cached."),
    KeySpec("swap", "swap", "When the lane's model would refuse the request: `strict` (default) takes the next lane, "
            "`adapt` may make every edit of the docs, `{adapt: [max_tokens, effort]}` only these."),
    KeySpec("stick", "stick", "`conversation` (default): it keeps its model; `economic`: it moves when that is earned "
            "back within 5 turns, or `{economic: {turns: 20}}`; `move`: it moves to this rule's lane and keeps that; "
            "`none`: each request by itself."),
    KeySpec("deferred", "deferred", "Whether an answer may come later, at half price (`Prefer: respond-async`): "
            "`allow` (default); `deny`, all are answered at once; `require`, who does not ask for it is refused. Or "
            "`{mode: allow, max_wait: 5s, real_time_after: 2h}`."),
    KeySpec("tags", "texts", "Words for traces and reports."),
)  # fmt: skip

CACHE_KEYS = (
    KeySpec("ttl", "duration", "How long an answer may be replayed, such as `1h`.", True),
    KeySpec("scope", "scope", "`tenant` (default): never shared between tenants; `shared`: one cache for all."),
    KeySpec("max_bytes", "size", "Largest answer kept, such as `1MB`, the default."),
    KeySpec("when_temperature", "temperature", "Only requests with such a `temperature`, as in `{lte: 0.3}`; one that "
            "says none counts as 1. Left out, all."),
    KeySpec("pace", "duration", "Time between two events of a replayed stream, such as `20ms`, at most `1s`; left out, "
            "a replay is sent at once."),
    KeySpec("coalesce", "flag", "`true` (default): identical requests in flight share one upstream call; `false`: each "
            "makes its own."),
    KeySpec("batches", "flag", "`true`: items of Message Batches are answered from the cache too, and their answers "
            "are kept; `false` (default): a batch is sent as a whole."),
)  # fmt: skip

RETRY_KEYS = (
    KeySpec("times", "count", "How often a lane that refused is asked again; 0 to 5, default 0."),
    KeySpec("on_timeout", "on_timeout", "`stop` (default): a lane that did not answer in time ends the request; "
            "`fallback`: the next lane is asked, and both may charge."),
)  # fmt: skip
TIMEOUT_KEYS = (
    KeySpec("connect", "duration", "Longest time until a connection is made, and as much again for TLS."),
    KeySpec("first_byte", "duration", "Longest wait for the first byte of an answer."),
    KeySpec("idle", "duration", "Longest silence inside an answer; a `ping` is no silence."),
    KeySpec("total", "duration", "Longest time for all of a request, retries and fallbacks included."),
)

DEFERRED_KEYS = (
    KeySpec("mode", "deferring", "`allow` (default): who sends `Prefer: respond-async` gets its answer later, at half "
            "price; `deny`: all are answered at once; `require`: a request without that header is refused."),
    KeySpec("max_wait", "duration", "How long a request waits for company before its batch is sent; `1ms` to `24h`, "
            "default `5s`."),
    KeySpec("max_items", "items", "Most requests in one batch; 1 to 10,000, default 1,000."),
    KeySpec("real_time_after", "duration", "A request not answered by then is answered in real time, at full price; up "
            "to `24h`. Left out, never."),
)  # fmt: skip

# A number like a fact of that kind, 0 to 1. Conditions have no such fact: it is the language's only outside of `when`.
TEMPERATURE = FactSpec("when_temperature", "number", "the request's `temperature`")

ECONOMIC_KEYS = (
    KeySpec("turns", "turns", "Turns within which a change of model must have earned back what it costs."),
)

STICK_KEYS = (KeySpec("economic", "economic", "A conversation moves when that is earned back in time.", True),)
SWAP_KEYS = (KeySpec("adapt", "edits", "The edits that may be made to a request so that a model takes it.", True),)

TEST_KEYS = (
    KeySpec("name", "text", "What the example shows.", True),
    KeySpec("request", "request", "A whole Messages API body; its labels come from the classifier."),
    KeySpec("given", "given", "Facts (and labels) instead of a request; the others have their resting value."),
    KeySpec("expect", "expect", "What must come out.", True),
)

EXPECT_KEYS = (
    KeySpec("rule", "text", "The rule that must decide, or `otherwise`."),
    KeySpec("lane", "text", "The first lane of the route, or `as-asked`."),
)

LANES_FILE_KEYS = (
    KeySpec("version", "version", "Version of the language: 1.", True),
    KeySpec("lanes", "lanes", "The lanes that all policies may name.", True),
    KeySpec(
        "default_lane", "lane", "Where `as-asked` leads when nothing in particular was asked (`model: auto`).", True
    ),
)

LANE_KEYS = (
    KeySpec("model", "model", "A model id of the catalogue (`router models` lists them).", True),
    KeySpec("fallback", "lane", "A lane to try after this one, wherever this one ends a route."),
)


@dataclass(frozen=True, slots=True)
class OperatorSpec:
    """One operator of a condition: which kinds of fact take it, what it compares with, what it means."""

    name: str
    kinds: tuple[Kind, ...]
    operand: Literal["value", "values", "number", "flag", "text"]
    meaning: str


_MOST: tuple[Kind, ...] = ("text", "integer", "number", "list")

OPERATORS = (
    OperatorSpec("in", _MOST, "values", "equals one of these; a list fact: holds any of them"),
    OperatorSpec("not_in", _MOST, "values", "the contrary of `in`; true of an absent fact"),
    OperatorSpec("lt", ("integer", "number"), "number", "less than"),
    OperatorSpec("lte", ("integer", "number"), "number", "at most"),
    OperatorSpec("gt", ("integer", "number"), "number", "greater than"),
    OperatorSpec("gte", ("integer", "number"), "number", "at least"),
    OperatorSpec("exists", (*_MOST, "flag"), "flag", "`true`: the fact is present, a list not empty"),
    OperatorSpec("matches", ("text", "list"), "text", "this expression (RE2) is found in it; a list: in any value"),
    OperatorSpec("contains", ("text", "list"), "text", "the text holds this text; the list holds this value"),
    OperatorSpec("starts_with", ("text", "list"), "text", "the text begins so; a list: any value does"),
)  # fmt: skip

NESTING = ("any", "all", "not")
NEVER_ABSENT = (*LABEL_FACTS, TEMPERATURE.name)  # nobody may ask `exists` of these
EDIT_NAMES = tuple(EDITS)

"""Nodes → policies, rules and lanes as written: unknown, missing and misshapen keys become diagnostics.

Nothing is checked across files here; a name is only a name. Values that mean something on their own (durations, sizes,
weights) come out in their units.
"""

from __future__ import annotations

from collections.abc import Sequence

from router.policy.conditions import number_comparisons
from router.policy.directives import DirectiveReader
from router.policy.grammar import (
    CACHE_KEYS,
    DEFAULT_TURNS,
    ECONOMIC_KEYS,
    EDIT_NAMES,
    EXPECT_KEYS,
    LANE_KEYS,
    LANES_FILE_KEYS,
    MAX_CACHE_BYTES,
    MAX_PACE_S,
    MAX_RULES,
    MAX_TESTS,
    MAX_TTL_S,
    MAX_TURNS,
    MAX_WEIGHT,
    MIN_CACHE_S,
    OTHERWISE,
    POLICY_KEYS,
    RESERVED_LANES,
    RULE_KEYS,
    SCOPE,
    STICK,
    STICK_KEYS,
    SWAP,
    SWAP_KEYS,
    TEMPERATURE,
    TEST_KEYS,
)
from router.policy.source import Node, Source
from router.policy.temperature import Temperatures
from router.policy.words import duration_s, is_name, near, seen, size_bytes
from router.policy.written import (
    CacheDirective,
    LaneEntry,
    Lanes,
    Policy,
    Rule,
    Stick,
    Swap,
    Test,
)


def parse_policy(name: str, source: Source) -> Policy | None:
    """The policy in `source`; None when it is not even a mapping. Diagnostics go to the source."""
    keys = _Reader(source).keys(source.root, POLICY_KEYS, "a policy")
    if keys is None:
        return None
    reader = _Reader(source)
    reader.version(keys.get("version"))
    rules = [rule for node in reader.items(keys.get("rules"), "rules", MAX_RULES) if (rule := reader.rule(node))]
    seen: dict[str, Rule] = {}
    for rule in rules:
        if rule.name and rule.name in seen:
            source.report(
                rule.at, f"rule `{rule.name}` appears twice", f"the first is on line {seen[rule.name].at.line}"
            )
        seen.setdefault(rule.name, rule)
    otherwise = reader.route(keys[OTHERWISE], f"`{OTHERWISE}`") if OTHERWISE in keys else ()
    tests = [test for node in reader.items(keys.get("tests"), "tests", MAX_TESTS) if (test := reader.test(node))]
    return Policy(name, source, tuple(rules), otherwise, tuple(tests))


def parse_lanes(source: Source) -> Lanes | None:
    """The lanes in `source`; None when it is not even a mapping. Diagnostics go to the source."""
    reader = _Reader(source)
    keys = reader.keys(source.root, LANES_FILE_KEYS, "lanes.yaml")
    if keys is None:
        return None
    reader.version(keys.get("version"))
    entries = []
    lanes = keys.get("lanes")
    if lanes is not None and (lanes.kind != "map" or not lanes.value):
        source.report(
            lanes, "`lanes` must be a mapping of names to models", "lanes: {haiku: {model: claude-haiku-5-5}}"
        )
        lanes = None
    for name, node in lanes.pairs() if lanes is not None else ():
        if name.value in RESERVED_LANES or not is_name(name.value):
            source.report(name, f"a lane cannot be called `{name.value}`", _naming(name.value, RESERVED_LANES))
        fields = reader.keys(node, LANE_KEYS, f"lane `{name.value}`")
        if fields is None or "model" not in fields:
            continue
        if reader.text(fields["model"], "`model`") is not None:
            fallback = fields.get("fallback")
            if fallback is not None and reader.text(fallback, "`fallback`") is None:
                fallback = None
            entries.append(LaneEntry(name.value, name, fields["model"], fallback))
    default = keys.get("default_lane")
    if default is not None and reader.text(default, "`default_lane`") is None:
        default = None
    return Lanes(source, tuple(entries), default)


def _naming(name: str, reserved: Sequence[str]) -> str:
    if name in reserved:
        return f"`{name}` has a meaning of its own"
    return "lower case letters, digits, `-`, `_` and `.`, at most 64 of them"


class _Reader(DirectiveReader):
    """Reads rules, tests and what they are made of."""

    def route(self, node: Node, what: str) -> tuple[Node, ...]:
        """The lane names of a route: one text or a list of texts."""
        if node.kind == "list" and not node.value:
            self.source.report(node, f"{what} names no lane", "name one, or write `as-asked`")
            return ()
        nodes = node.value if node.kind == "list" else (node,)
        return tuple(item for item in nodes if self.text(item, f"a lane of {what}") is not None)

    def rule(self, node: Node) -> Rule | None:
        name_node = next((value for key, value in node.pairs() if key.value == "name"), None)
        name = name_node.value if name_node is not None and name_node.kind == "text" else ""
        what = f"rule `{name[:60]}`" if name else "a rule"
        keys = self.keys(node, RULE_KEYS, what)
        if keys is None:
            return None
        if "name" in keys and (not is_name(name) or name == OTHERWISE):
            self.source.report(
                keys["name"], f"a rule cannot be called {seen(keys['name'])}", _naming(name, (OTHERWISE,))
            )
        ends = [key for key in ("route", "split", "deny") if key in keys]
        if len(ends) > 1:
            self.source.report(keys[ends[1]], f"{what} has both `{ends[0]}` and `{ends[1]}`", "keep one of them")
        elif not ends and not any(key.value in ("route", "split", "deny") for key, _ in node.pairs()):
            self.source.report(node, f"{what} does not say where to go", "add `route`, `split` or `deny`")
        deny = keys.get("deny")
        if "deny" in keys and "deferred" in keys:
            hint = "a request that is refused has no answer, now or later"
            self.source.report(keys["deferred"], f"{what} has both `deny` and `deferred`", hint)
        swap, edits = self.swap(keys.get("swap"), what)
        stick, turns = self.stick(keys.get("stick"), what)
        return Rule(
            name=name,
            at=name_node or node,
            when=keys.get("when"),
            route=self.route(keys["route"], what) if "route" in keys else (),
            split=self.weights(keys["split"], what) if "split" in keys else (),
            deny=self.line(deny, f"`deny` of {what}") if deny is not None else None,
            retry=self.retry(keys.get("retry"), what),
            timeouts=self.timeouts(keys.get("timeout"), what),
            cache=self.cache(keys["cache"], what) if "cache" in keys else None,
            swap=swap,
            edits=edits,
            stick=stick,
            turns=turns,
            deferred=self.deferred(keys.get("deferred"), what),
            tags=self.texts(keys.get("tags"), f"`tags` of {what}"),
        )

    def swap(self, node: Node | None, what: str) -> tuple[Swap, tuple[str, ...]]:
        """`strict`, `adapt` (every edit), or `{adapt: [names]}` (only these)."""
        if node is None or node.kind != "map":
            swap: Swap = self.choice(node, f"`swap` of {what}", SWAP)
            return swap, EDIT_NAMES if swap == "adapt" else ()
        keys = self.keys(node, SWAP_KEYS, f"`swap` of {what}")
        if keys is None or "adapt" not in keys:
            return "strict", ()
        listed = keys["adapt"]
        if listed.kind == "list" and not listed.value:
            self.source.report(listed, f"`adapt` of {what} names no edit", "write `swap: strict`, or name one")
        items = listed.value if listed.kind == "list" else (listed,)
        for item in items:
            if item.value not in EDIT_NAMES:
                hint = near(str(item.value), EDIT_NAMES, f"edits: {', '.join(EDIT_NAMES)}")
                self.source.report(item, f"`swap` of {what} names {seen(item)}, which is no edit", hint)
        return "adapt", tuple(name for name in EDIT_NAMES if name in {item.value for item in items})

    def stick(self, node: Node | None, what: str) -> tuple[Stick, int]:
        """One of the words, or `{economic: {turns: N}}`."""
        if node is None or node.kind != "map":
            return self.choice(node, f"`stick` of {what}", STICK), DEFAULT_TURNS
        keys = self.keys(node, STICK_KEYS, f"`stick` of {what}")
        inner = (
            self.keys(keys["economic"], ECONOMIC_KEYS, f"`economic` of {what}") if keys and "economic" in keys else {}
        )
        turns = inner.get("turns") if inner else None
        if turns is None:
            return "economic", DEFAULT_TURNS
        if turns.kind != "integer" or not 1 <= turns.value <= MAX_TURNS:
            self.source.report(turns, f"`turns` of {what} must be 1 to {MAX_TURNS}, this is {seen(turns)}")
            return "economic", DEFAULT_TURNS
        return "economic", turns.value

    def weights(self, node: Node, what: str) -> tuple[tuple[Node, int], ...]:
        if node.kind != "map" or not node.value:
            self.source.report(
                node, f"`split` of {what} must give lanes their weights", "split: {haiku: 90, sonnet: 10}"
            )
            return ()
        weights = []
        for key, value in node.pairs():
            if value.kind != "integer" or not 0 < value.value <= MAX_WEIGHT:
                hint = "a lane that gets nothing is left out; weights need not add up to 100"
                bounds = f"a whole number from 1 to {MAX_WEIGHT}"
                self.source.report(value, f"weight of `{key.value}` must be {bounds}, this is {seen(value)}", hint)
            else:
                weights.append((key, value.value))
        return tuple(weights)

    def cache(self, node: Node, what: str) -> CacheDirective | None:
        keys = self.keys(node, CACHE_KEYS, f"`cache` of {what}")
        if keys is None:
            return None
        ttl_s = self.duration(keys["ttl"], f"`ttl` of {what}") if "ttl" in keys else None
        if ttl_s is not None and not MIN_CACHE_S <= ttl_s <= MAX_TTL_S:
            self.source.report(
                keys["ttl"],
                f"`ttl` of {what} must be `1ms` to `30d`, this is {seen(keys['ttl'])}",
                "a cache that processes share keeps an answer for 30 days at most"
                if ttl_s > MAX_TTL_S
                else "such as `1h`",
            )
        largest = keys.get("max_bytes")
        max_bytes = size_bytes(largest.value) if largest is not None else 1_000_000
        if largest is not None and (max_bytes is None or max_bytes > MAX_CACHE_BYTES):
            self.source.report(
                largest, f"`max_bytes` of {what} must be a size up to 64MiB, this is {seen(largest)}", "such as `1MB`"
            )
        directive = CacheDirective(
            ttl_s=ttl_s or 1.0,
            scope=self.choice(keys.get("scope"), f"`scope` of {what}", SCOPE),
            max_bytes=max_bytes or 0,
            when_temperature=self.temperatures(keys.get(TEMPERATURE.name), what),
            pace_s=self.pace(keys.get("pace"), what),
            is_coalescing=self.flag(keys.get("coalesce"), f"`coalesce` of {what}", otherwise=True),
            in_batches=self.flag(keys.get("batches"), f"`batches` of {what}", otherwise=False),
        )
        return directive if "ttl" in keys else None

    def temperatures(self, node: Node | None, what: str) -> Temperatures | None:
        """The comparisons of `when_temperature`, with the operators and in the words of conditions."""
        if node is None:
            return None
        compared = number_comparisons(TEMPERATURE, node, self.source, f"`cache` of {what}")
        found = Temperatures.of((operator, operand) for operator, operand, _ in compared)
        if found.is_empty():
            hint = "no temperature from 0 to 1 is like that: nothing would be cached"
            self.source.report(node, f"`{TEMPERATURE.name}` of {what} can never hold", hint)
        return found if compared else None

    def pace(self, node: Node | None, what: str) -> float:
        pace_s = duration_s(node.value) if node is not None else None
        if node is not None and (pace_s is None or not MIN_CACHE_S <= pace_s <= MAX_PACE_S):
            hint = "such as `20ms`; left out, a replay is sent at once"
            self.source.report(node, f"`pace` of {what} must be `1ms` to `1s`, this is {seen(node)}", hint)
        return pace_s or 0.0

    def test(self, node: Node) -> Test | None:
        keys = self.keys(node, TEST_KEYS, "a test")
        if keys is None:
            return None
        name = self.line(keys["name"], "`name` of a test") if "name" in keys else None
        what = f"test `{name}`" if name else "a test"
        if ("request" in keys) == ("given" in keys):
            self.source.report(node, f"{what} must have either `request` or `given`")
        for key in ("request", "given"):
            if key in keys and keys[key].kind != "map":
                self.source.report(keys.pop(key), f"`{key}` of {what} must be a mapping")
        expect = self.keys(keys.get("expect"), EXPECT_KEYS, f"`expect` of {what}")
        if expect is not None and not expect:
            self.source.report(keys["expect"], f"{what} expects nothing", "expect: {rule: …, lane: …}")
        if expect is None or ("request" in keys) == ("given" in keys):
            return None
        return Test(name or "", node, keys.get("request"), keys.get("given"), expect.get("rule"), expect.get("lane"))

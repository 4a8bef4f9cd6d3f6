"""Condition nodes → clauses: checked against the vocabulary, compiled to closures over facts and label.

A condition is a list of clauses that must all hold. The clauses of a rule are tried cheapest first: counted facts, then
facts that read the words, then labels; so a label is asked for only when everything else already holds. An absent fact
fulfils `not_in` and `exists: false` and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from router.facts.vocabulary import FACTS, HEADER_PREFIX, SECRET_HEADERS, FactSpec, fact_spec
from router.policy.grammar import NESTING, NEVER_ABSENT, OPERATORS, OperatorSpec
from router.policy.operators import Check, SearchRegex, list_check, value_check
from router.policy.source import MAX_DIAGNOSTICS, Node, Source, resolve
from router.policy.words import near

MAX_REGEX_CHARS = 1000  # compiling one of these takes a few milliseconds at the most
COUNTED, READ, LABELLED = 0, 1, 2
_COST = {"counted": COUNTED, "read": READ, "labelled": LABELLED}
_OPERATORS = {spec.name: spec for spec in OPERATORS}
Compared = tuple[str, Any, Node]  # operator, operand, where the operator stands
_LANGUAGE = re.compile(r"[a-z]{2}\Z")
# The languages that the fact `language` can be, as people may call them.
LANGUAGES = {
    "arabic": "ar", "german": "de", "deutsch": "de", "greek": "el", "english": "en", "spanish": "es", "español": "es",
    "french": "fr", "français": "fr", "hebrew": "he", "hindi": "hi", "italian": "it", "italiano": "it",
    "japanese": "ja", "korean": "ko", "dutch": "nl", "nederlands": "nl", "polish": "pl", "polski": "pl",
    "portuguese": "pt", "português": "pt", "russian": "ru", "swedish": "sv", "svenska": "sv", "thai": "th",
    "turkish": "tr", "chinese": "zh",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Clause:
    """One part of a condition: how to test it and how to talk about it.

    `holds` and `fails` are prebuilt sentences. `fact`, `operator` and `operand` are filled for a single comparison;
    `parts` for `any` (each part a conjunction) and `not` (one part).
    """

    check: Check
    holds: str
    fails: str
    reads: frozenset[str]
    cost: int
    at: Node
    fact: str = ""
    operator: str = ""
    operand: Any = None
    parts: tuple[tuple[Clause, ...], ...] = ()


def compile_condition(node: Node, source: Source, where: str, search_regex: SearchRegex) -> tuple[Clause, ...]:
    """The clauses of a `when` mapping, in the order written; what cannot be compiled is reported and left out."""
    return _Compiler(source, where, search_regex).conjunction(node)


def number_comparisons(spec: FactSpec, node: Node, source: Source, where: str) -> list[Compared]:
    """The comparisons of a number that is no fact but is compared like one; what is wrong is reported and left out."""
    return _Compiler(source, where, _no_regex).compared(spec, node, node)


def _no_regex(pattern: str) -> Callable[[str], bool]:
    raise ValueError("a number is not searched")


def all_hold(clauses: tuple[Clause, ...]) -> Check:
    """One check for a conjunction, cheapest clause first."""
    checks = tuple(clause.check for clause in cheapest_first(clauses))
    if len(checks) == 1:
        return checks[0]
    return lambda facts, label: all(check(facts, label) for check in checks)


def cheapest_first(clauses: tuple[Clause, ...]) -> tuple[Clause, ...]:
    """The clauses in the order in which they are tried; those of one cost keep the order written."""
    return tuple(sorted(clauses, key=lambda clause: clause.cost))


class _Compiler:
    def __init__(self, source: Source, where: str, search_regex: SearchRegex) -> None:
        self._source = source
        self._where = where
        self._search_regex = search_regex

    def conjunction(self, node: Node) -> tuple[Clause, ...]:
        if node.kind != "map":
            self._source.report(
                node, f"a condition of {self._where} must be a mapping of facts", "when: {input_tokens: {gt: 100000}}"
            )
            return ()
        clauses: list[Clause] = []
        for key, value in node.pairs():
            if key.value == "all":
                for part in self._parts(key, value):
                    clauses.extend(self.conjunction(part))
            elif key.value == "any":
                parts = tuple(self.conjunction(part) for part in self._parts(key, value))
                if parts and all(parts):
                    clauses.append(_any(key, parts))
            elif key.value == "not":
                inner = self.conjunction(value)
                if inner:
                    clauses.append(_not(key, inner))
                elif value.kind == "map" and not value.value:
                    self._source.report(value, f"`not` of {self._where} is empty", "`not: {}` would never hold")
            else:
                clauses.extend(self._fact(key, value))
        return tuple(clauses)

    def _parts(self, key: Node, value: Node) -> tuple[Node, ...]:
        if value.kind != "list" or not value.value:
            self._source.report(
                value,
                f"`{key.value}` of {self._where} must be a list of conditions",
                f"{key.value}: [{{stream: true}}, …]",
            )
            return ()
        for part in value.value:
            if part.kind == "map" and not part.value:
                self._source.report(
                    part, f"an empty condition in `{key.value}` of {self._where}", "it would always hold"
                )
        return tuple(value.value)

    def _fact(self, key: Node, value: Node) -> list[Clause]:
        spec = fact_spec(key.value)
        if spec is None:
            self._unknown(key)
            return []
        return [_comparison(spec, *compared, self._search_regex) for compared in self.compared(spec, key, value)]

    def compared(self, spec: FactSpec, key: Node, value: Node) -> list[Compared]:
        if value.kind == "map":
            if not value.value:
                self._source.report(
                    value,
                    f"`{spec.name}` of {self._where} is compared with nothing",
                    _example(spec),
                )
            compared = [self._operator(spec, name, operand) for name, operand in value.pairs()]
            return [found for found in compared if found is not None]
        if value.kind == "list":
            self._source.report(
                value,
                f"`{spec.name}` of {self._where} is compared with a list",
                f"write `{_example(spec, is_many=True)}`",
            )
            return []
        if value.kind == "null":
            self._source.report(
                key,
                f"`{spec.name}` of {self._where} has no value",
                f"write `{{exists: false}}` to ask whether `{spec.name}` is absent",
            )
            return []
        if spec.kind == "list":
            self._source.report(
                value,
                f"`{spec.name}` is a list: {self._where} compares it with one value",
                f"write `{spec.name}: {{contains: …}}`",
            )
            return []
        operand = fact_value(spec, value, self._source, self._where)
        return [] if operand is None else [("equals", operand, key)]

    def _unknown(self, key: Node) -> None:
        name: str = key.value
        if name.startswith(HEADER_PREFIX):
            header = name[len(HEADER_PREFIX) :]
            if header.lower() in SECRET_HEADERS:
                self._source.report(key, f"header `{header}` holds a credential: {self._where} may not read it")
            else:
                self._source.report(
                    key, f"`{name}` in {self._where} is not a header", "write the name in lower case: `header.x-app`"
                )
            return
        if len(self._source.diagnostics) > MAX_DIAGNOSTICS:  # nobody sees it, and the nearest name takes long to find
            hint = ""
        elif name in _OPERATORS:
            hint = f"an operator belongs under a fact: `input_tokens: {{{name}: …}}`"
        else:
            hint = near(name, (*FACTS, *NESTING), "`router policy facts` lists them")
        self._source.report(key, f"unknown fact `{name[:60]}` in {self._where}", hint)

    def _operator(self, spec: FactSpec, name: Node, operand: Node) -> Compared | None:
        operator = _OPERATORS.get(name.value)
        if operator is None:
            hint = near(name.value, _OPERATORS, f"operators: {', '.join(_OPERATORS)}")
            self._source.report(name, f"unknown operator `{name.value[:60]}` in {self._where}", hint)
            return None
        if spec.kind not in operator.kinds or (name.value == "exists" and spec.name in NEVER_ABSENT):
            fitting = [
                o.name
                for o in OPERATORS
                if spec.kind in o.kinds and (o.name != "exists" or spec.name not in NEVER_ABSENT)
            ]
            self._source.report(
                name, f"`{spec.name}` is {_kind(spec)}: {self._where} cannot ask `{name.value}` of it", _takes(fitting)
            )
            return None
        value = self._take(spec, operator, operand)
        return None if value is None else (operator.name, value, name)

    def _take(self, spec: FactSpec, operator: OperatorSpec, node: Node) -> Any:
        """The operand as Python data, or None (reported)."""
        if operator.operand == "values":
            if node.kind != "list":
                self._source.report(
                    node,
                    f"`{operator.name}` in {self._where} takes a list",
                    f"write `{operator.name}: [{_value(node)}]`",
                )
                return None
            if not node.value:
                says = "can never hold" if operator.name == "in" else "always holds"
                self._source.report(node, f"`{operator.name}: []` in {self._where} {says}", "name at least one value")
                return None
            values = [fact_value(spec, item, self._source, self._where) for item in node.value]
            return None if None in values else tuple(values)
        if operator.operand == "flag":
            if node.kind != "flag":
                self._source.report(
                    node,
                    f"`{operator.name}` in {self._where} takes `true` or `false`, this is `{_value(node)}`",
                    "take the quotes away" if node.value in ("true", "false") else "",
                )
                return None
            return node.value
        if operator.operand == "number":
            return fact_value(spec, node, self._source, self._where)
        if node.kind != "text" or not node.value:
            hint = "quote it" if node.kind in ("integer", "number", "flag") else ""
            seen = "empty" if node.value == "" else f"`{_value(node)}`"
            self._source.report(node, f"`{operator.name}` in {self._where} takes a text, this is {seen}", hint)
            return None
        if operator.name == "matches":
            if len(node.value) > MAX_REGEX_CHARS:
                seen = f"{len(node.value):,} characters, at most {MAX_REGEX_CHARS:,} are taken"
                self._source.report(
                    node, f"the regular expression in {self._where} has {seen}", "split it over an `any`, or use `in`"
                )
                return None
            try:
                self._search_regex(node.value)
            except ValueError as error:
                self._source.report(
                    node,
                    f"bad regular expression in {self._where}: {error}",
                    "the syntax is RE2's: no look-around, no back-references",
                )
                return None
        return node.value


def fact_value(spec: FactSpec, node: Node, source: Source, where: str) -> Any:
    """The value of a node that `spec` can be compared with (one text, for a list fact); None (reported) for another."""
    kind = "text" if spec.kind == "list" else spec.kind
    if node.kind != kind and not (kind == "number" and node.kind == "integer"):
        hint = "quote it" if kind == "text" and node.kind in ("integer", "number", "flag") else ""
        if kind in ("integer", "number") and node.kind == "text" and resolve(node.value)[0] in ("integer", "number"):
            hint = "take the quotes away"
        source.report(node, f"`{spec.name}` is {_kind(spec)}: {where} compares it with `{_value(node)}`", hint)
        return None
    if spec.values and node.value not in spec.values:
        hint = near(node.value, spec.values, f"it can be {', '.join(spec.values)}")
        source.report(node, f"`{spec.name}` is never `{_value(node)}` (in {where})", hint)
        return None
    if spec.name == "language" and not _LANGUAGE.match(node.value):
        word = re.split("[-_]", node.value.lower(), maxsplit=1)[0][:40]  # `en-GB`, `DE`
        close = get_close_matches(word, LANGUAGES, 1)
        code = word if _LANGUAGE.match(word) else LANGUAGES[close[0]] if close else ""
        hint = f"did you mean `{code}`?" if code else "such as `en`, `de` or `ja`"
        source.report(
            node, f"`language` is two lower-case letters (ISO 639-1), not `{_value(node)}` (in {where})", hint
        )
        return None
    low, high = value_range(spec)
    if low is not None and (node.value < low or (high is not None and node.value > high)):
        bounds = f"runs from {low} to {high}" if high is not None else f"is never under {low}"
        source.report(node, f"`{spec.name}` {bounds}: {where} compares it with `{_value(node)}`")
        return None
    return node.value


def value_range(spec: FactSpec) -> tuple[int | None, int | None]:
    """The least and greatest value of a numeric fact, both included; None where there is no bound."""
    if spec.kind == "number":
        return 0, 1
    if spec.kind == "integer":
        return 0, 23 if spec.name == "hour" else None
    return None, None


def _comparison(spec: FactSpec, operator: str, operand: Any, at: Node, search_regex: SearchRegex) -> Clause:
    check = (
        list_check(spec, operator, operand, search_regex)
        if spec.kind == "list"
        else value_check(spec, operator, operand, search_regex)
    )
    shown = _shown(operand)
    name = f"`{spec.name}`"
    holds, fails = {
        "equals": (f"{name} is {shown}", f"{name} is not {shown}"),
        "in": (f"{name} is in {shown}", f"{name} is not in {shown}"),
        "not_in": (f"{name} is not in {shown}", f"{name} is in {shown}"),
        "exists": (f"{name} is {_presence(operand)}", f"{name} is {_presence(not operand)}"),
        "matches": (f"{name} matches {shown}", f"{name} does not match {shown}"),
        "contains": (f"{name} contains {shown}", f"{name} does not contain {shown}"),
        "starts_with": (f"{name} starts with {shown}", f"{name} does not start with {shown}"),
    }.get(operator, (f"{name} is {operator} {shown}", f"{name} is not {operator} {shown}"))
    return Clause(check, holds, fails, frozenset((spec.name,)), _COST[spec.cost], at, spec.name, operator, operand)


def _any(at: Node, parts: tuple[tuple[Clause, ...], ...]) -> Clause:
    # Cheap parts first, so that a label is not waited for where a count already answers.
    ordered = sorted(parts, key=lambda part: max(clause.cost for clause in part))
    checks = tuple(all_hold(part) for part in ordered)
    said = " or ".join(_together(part, "holds") for part in parts)
    return Clause(
        check=lambda facts, label: any(check(facts, label) for check in checks),
        holds=f"any of ({said})",
        fails=f"none of ({said})",
        reads=frozenset().union(*(clause.reads for part in parts for clause in part)),
        cost=max(clause.cost for part in parts for clause in part),
        at=at,
        operator="any",
        parts=parts,
    )


def _not(at: Node, part: tuple[Clause, ...]) -> Clause:
    check = all_hold(part)
    said = _together(part, "holds")
    return Clause(
        check=lambda facts, label: not check(facts, label),
        holds=f"not ({said})",
        fails=f"`not` fails: {said}",
        reads=frozenset().union(*(clause.reads for clause in part)),
        cost=max(clause.cost for clause in part),
        at=at,
        operator="not",
        parts=(part,),
    )


def _together(part: tuple[Clause, ...], which: str) -> str:
    return " and ".join(getattr(clause, which) for clause in part)


def _kind(spec: FactSpec) -> str:
    words = {
        "text": "a text",
        "integer": "a whole number",
        "number": "a number",
        "flag": "true or false",
        "list": "a list of texts",
    }
    return words[spec.kind]


def _takes(operators: list[str]) -> str:
    return f"it takes a bare value, {', '.join(operators)}" if operators else "it takes a bare value"


def _example(spec: FactSpec, *, is_many: bool = False) -> str:
    if spec.kind == "flag":
        return f"{spec.name}: true"
    if is_many:
        return f"{spec.name}: {{in: […]}}"
    return f"{spec.name}: {{{ {'text': 'in: […]', 'list': 'contains: …'}.get(spec.kind, 'gt: …') }}}"


def _presence(is_present: bool) -> str:
    return "present" if is_present else "absent"


def _shown(operand: Any) -> str:
    if isinstance(operand, tuple):
        text = f"[{', '.join(_shown(item) for item in operand[:8])}{', …' if len(operand) > 8 else ''}]"
    elif isinstance(operand, bool):
        text = str(operand).lower()
    else:
        text = str(operand)
    return text if len(text) <= 100 else f"{text[:100]}…"


def _value(node: Node) -> str:
    if node.kind in ("list", "map"):
        return f"a {'list' if node.kind == 'list' else 'mapping'}"
    return _shown(node.value) if node.value is not None else "nothing"

"""Generates labelled requests in our own wordings.

Each task has a file with wordings of three kinds: instructions `over` material that stands beside them, `bare`
requests that are complete in themselves (of hard work also by how hard), and an `operator`'s system prompts under
which the user's turn is the material alone. Wordings are put into many layouts around contents that say nothing about
the task: own texts, and the contents of training rows under another instruction. So the same maths problem occurs to
be solved, translated, classified and shortened, and only the instruction tells which. Short turns follow earlier
work; sentences that beg for the big model or talk the request down are strewn in at random, of either kind into any
task.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from wordings.contents import Contents, read
from wordings.frames import Frames, Request
from wordings.notation import Notation

EASY = ("classification", "extraction", "summarization", "translation", "simple_qa", "rewrite", "chat")
HARD = ("reasoning", "coding", "knowledge", "agentic")
_DIFFICULTY = {
    "classification": (1,),
    "extraction": (1, 1, 2),
    "summarization": (2,),
    "translation": (2,),
    "simple_qa": (1, 2),
    "rewrite": (1,),
    "chat": (1,),
    "reasoning": (3, 4),
    "coding": (3, 4, 4),
    "knowledge": (4,),
    "agentic": (5,),
}
# How many rows of a task, and of the kinds of wording within it.
_SHARE = {"chat": 0.7, "agentic": 0.7, "knowledge": 1.1, "reasoning": 1.3, "coding": 1.2, "simple_qa": 1.4}
_KINDS = {"over": 5.0, "bare": 2.5, "operator": 2.5}
_KINDS_OF = {
    "chat": {"over": 1, "bare": 8, "operator": 1.5},
    "knowledge": {"over": 2, "bare": 7, "operator": 1, "exam": 2},
    "reasoning": {"over": 5, "bare": 3, "operator": 1.5, "exam": 1.5},
    "agentic": {"over": 1, "bare": 3, "operator": 5, "clerk": 1.5},
}
# Share of the labelled rows that get a twin with an injected sentence, and of our own rows that get one.
TWINS, PRESSED = 0.5, 0.12
# Rows that are short turns after earlier work, beside a hundred of the others.
_SHORT_TURNS = 6


def generate(items: Sequence[dict[str, Any]], count: int, seed: int) -> list[dict[str, Any]]:
    """About `count` labelled requests, and twins of `items`, which also lend their contents. Deterministic."""
    maker = _Maker(items, random.Random(seed))
    rows: list[dict[str, Any]] = []
    unit = count / sum(_SHARE.get(task, 1.0) for task in (*EASY, *HARD)) / (1 + _SHORT_TURNS / 100)
    for task in (*EASY, *HARD):
        rows += maker.rows(task, int(unit * _SHARE.get(task, 1.0)))
    rows += [maker.short_turn(at) for at in range(count * _SHORT_TURNS // (100 + _SHORT_TURNS))]
    # A labelled row and its twin with an injected sentence differ in nothing else, so the sentence learns no weight.
    for item in items:
        if maker.chance.random() < TWINS and (twin := maker.twin(item)):
            rows.append(twin)
    return rows


class _Maker:
    """Fills wordings, frames and parameters from one source of chance."""

    def __init__(self, items: Sequence[dict[str, Any]], chance: random.Random) -> None:
        self.chance = chance
        self._slots: dict[str, Any] = read("slots.yaml")
        self._pressure: dict[str, list[str]] = read("pressure.yaml")
        self._slots["replies"] = self._pressure["replies"]
        self._wordings: dict[str, dict[str, list[str]]] = {task: read(f"{task}.yaml") for task in (*EASY, *HARD)}
        for name in ("exam", "exam_cases"):
            for section, stems in read(f"{name}.yaml").items():
                task, level = section.split("-")
                self._wordings[task].setdefault(f"exam-{level}", []).extend(stems)
        self._contents = Contents(items)
        self._notation = Notation(self._slots, self._contents, chance)
        self._frames = Frames(self._slots, self._contents, self._notation, chance)

    def rows(self, task: str, count: int) -> list[dict[str, Any]]:
        """Requests of one task, each wording about as often as its neighbours."""
        kinds = _KINDS_OF.get(task, _KINDS)
        rows = []
        for kind, share in kinds.items():
            named = [section for section in self._wordings[task] if section.split("-")[0] == kind]
            listed = [(section, at) for section in named for at in range(len(self._wordings[task][section]))]
            for number in range(int(count * share / sum(kinds.values()))):
                section, at = listed[number % len(listed)] if listed else (kind, number % 40)
                rows.append(self._row(task, section, at))
        return rows

    def _row(self, task: str, section: str, at: int) -> dict[str, Any]:
        kind, _, level = section.partition("-")
        difficulty = int(level) if level else self.chance.choice(_DIFFICULTY[task])
        wording = "" if kind == "clerk" else self._wordings[task][section][at]
        request, content_kind = getattr(self, f"_{kind}")(task, wording)
        if kind == "over" and task in ("reasoning", "coding") and content_kind in ("maths", "code"):
            difficulty = 4
        self._parameters(task, request)
        if self.chance.random() < PRESSED:
            request = self._pressed_request(request)
        return {"task": task, "difficulty": difficulty, "template": f"own.{task}.{section}.{at}", "request": request}

    def _over(self, task: str, wording: str) -> tuple[Request, str]:
        content, kind = self._contents.pick(task, self.chance, wording.lower())
        instruction = self._notation.varied(self._notation.fill(wording, content), task != "chat")
        if task == "knowledge":
            return self._frames.bare(instruction), kind
        if task == "agentic":
            return self._frames.agent(None, f"{instruction}\n\n{content}", may_talk=False), kind
        return self._frames.around(instruction, content, is_easy=task in EASY), kind

    def _bare(self, task: str, wording: str) -> tuple[Request, str]:
        text = self._notation.fill(wording, self._contents.any(self.chance))
        if task == "agentic":
            operator = None if self.chance.random() < 0.5 else self._operator_of(task)
            return self._frames.agent(operator, text, may_talk=True), "none"
        return self._frames.bare(
            text if len(text) > 200 else self._notation.varied(text, task not in ("chat",))
        ), "none"

    def _operator(self, task: str, wording: str) -> tuple[Request, str]:
        content, kind = self._contents.pick(task, self.chance, wording.lower())
        operator = self._notation.fill(wording, content)
        if task == "agentic":
            return self._frames.agent(operator, self._turn_of(task), may_talk=True), kind
        if task == "simple_qa":
            return self._frames.over_articles(operator, content, self._contents.question(content, self.chance)), kind
        if task in ("chat", "knowledge") or (task in HARD and self.chance.random() < 0.4):
            content = self._turn_of(task)
        return self._frames.operated(operator, content), kind

    def _exam(self, task: str, wording: str) -> tuple[Request, str]:
        stem = self._notation.fill(wording, "")
        if self.chance.random() < 0.2:
            stem = (
                self._contents.trivia(self.chance) if task == "knowledge" else self._contents.pick(task, self.chance)[0]
            )
        return self._frames.exam(stem), "none"

    def _clerk(self, task: str, wording: str) -> tuple[Request, str]:
        return self._frames.clerk(), "none"

    def _turn_of(self, task: str) -> str:
        """A complete request of a task, as a user's turn."""
        sections = [section for section in self._wordings[task] if section.startswith("bare")]
        wording = self.chance.choice(self._wordings[task][self.chance.choice(sections)])
        return self._notation.fill(wording, self._contents.any(self.chance))

    def _operator_of(self, task: str) -> str:
        return self._notation.fill(
            self.chance.choice(self._wordings[task]["operator"]), self._contents.any(self.chance)
        )

    def short_turn(self, number: int) -> dict[str, Any]:
        """A short turn after earlier work of any task: what it asks for decides, not what was asked before."""
        chance = self.chance
        kind = ("closing", "transform", "hard-turn", "go-ahead")[number % 4]
        at = number // 4 % len(self._pressure[kind])
        task, difficulty = {"closing": ("chat", 1), "transform": ("rewrite", 1)}.get(kind, ("coding", 4))
        earlier_task = chance.choice((*EASY, *HARD))
        if kind == "hard-turn":
            earlier_task = task = chance.choice(("coding", "reasoning"))
        elif kind == "go-ahead":  # says nothing itself: as often easy as hard, so that its judgement stays open
            task = earlier_task
            difficulty = 1 if task in EASY else 4
        text = self._turn_of(earlier_task) if chance.random() < 0.7 else self._contents.any(chance)
        turn = self._notation.fill(self._pressure[kind][at], "")
        request = self._frames.after(self._frames.bare(text), turn)
        self._parameters(task, request)
        return {"task": task, "difficulty": difficulty, "template": f"own.{kind}.{at}", "request": request}

    def twin(self, item: dict[str, Any]) -> dict[str, Any] | None:
        """A labelled row with an injected sentence in its last turn, where that is plain text."""
        last = item["request"]["messages"][-1]
        if last["role"] != "user" or not isinstance(last["content"], str):
            return None
        request = self._pressed_request(item["request"])
        return {key: item[key] for key in ("task", "difficulty", "template")} | {"request": request}

    def _pressed_request(self, request: Request) -> Request:
        *before, last = request["messages"]
        if not isinstance(last["content"], str):
            return request
        return {**request, "messages": [*before, {**last, "content": self._pressed(last["content"])}]}

    def _pressed(self, text: str) -> str:
        """The text with a sentence that begs for the big model or talks the work down: what it says must not count."""
        chance = self.chance
        sentence = self._notation.fill(chance.choice(self._pressure[chance.choice(["begging", "talking-down"])]), "")
        at = text.find(" ", chance.randint(0, max(len(text) - 1, 1)))
        return chance.choice([f"{sentence}\n{text}", f"{text}\n{sentence}", f"{text[:at]} {sentence} {text[at:]}"])

    def _parameters(self, task: str, request: Request) -> None:
        """Limits, temperature, thinking, structured output and forced tools: leanings, never proofs."""
        chance = self.chance
        small = task in EASY and chance.random() < 0.35
        request["max_tokens"] = (
            chance.choice([16, 64, 200, 512]) if small else chance.choice([256, 512, 1024, 2048, 4096, 8192])
        )
        if chance.random() < 0.45:
            request["temperature"] = 0.0 if chance.random() < (0.6 if task in EASY else 0.4) else 0.7
        if chance.random() < 0.08:
            request["thinking"] = {"type": "enabled", "budget_tokens": 2000}
        if chance.random() < 0.18 and task not in ("agentic", "chat"):
            self._structure(task, request)

    def _structure(self, task: str, request: Request) -> None:
        """A schema for the answer, as output format or as one forced tool; hard work is dressed so as well."""
        chance, slots = self.chance, self._slots
        names = {
            "classification": [chance.choice(["label", "category", "intent", "topic"])],
            "extraction": chance.sample(slots["fields"], 3),
            "coding": ["code", "notes"],
        }
        fields = names.get(
            task, chance.choice([["answer"], ["result"], ["text"], ["answer", "explanation"], ["output"]])
        )
        properties: dict[str, Any] = {field: {"type": "string"} for field in fields}
        if task == "classification" or (task == "reasoning" and chance.random() < 0.4):
            properties[fields[0]]["enum"] = ["a", "b"]
        if chance.random() < 0.3:
            properties["confidence"] = {"type": "number"}
        schema = {"type": "object", "properties": properties}
        if chance.random() < (0.6 if task in ("classification", "extraction") else 0.25):
            name, description = chance.choice(slots["stores"].get(task, slots["stores"]["any"])).split(": ")
            request["tools"] = [{"name": name, "description": description, "input_schema": schema}]
            request["tool_choice"] = chance.choice([{"type": "tool", "name": name}, {"type": "any"}])
            if chance.random() < 0.4 and not isinstance(request.get("system"), list):
                rule = chance.choice(slots["calling"].get(task, slots["calling"]["any"]))
                request["system"] = f"{request.get('system', '')}\n{self._notation.fill(rule, '')}".strip()
        else:
            request["output_config"] = {"format": {"type": "json_schema", "schema": schema}}

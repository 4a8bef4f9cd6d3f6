"""Generates labelled requests in our own wordings.

Every wording is put into many frames (terse, system prompt, tags, schema, tool, several turns, operator's rules)
around contents that say nothing about the task: own short texts, and the contents of training rows under another
instruction. So the same maths problem occurs to be solved, translated, classified and shortened, and only the
instruction tells which. Texts that beg for the big model or talk a hard request down are strewn in at random.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

from wordings.contents import Contents, read

EASY: dict[str, list[str]] = read("easy.yaml")
HARD: dict[str, list[str]] = read("hard.yaml")
SLOTS: dict[str, Any] = read("slots.yaml")
_CHOICE = re.compile(r"\{([^{}]*\|[^{}]*)\}")
_SLOT = re.compile(r"\[([a-z-]+)\]")
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
    "knowledge": (3, 4),
    "agentic": (5,),
}
# Share of the labelled rows that get a twin with an injected sentence.
TWINS = 0.5
_SHARE = {"chat": 0.7, "agentic": 0.5, "knowledge": 1.1, "reasoning": 1.3, "coding": 1.2, "simple_qa": 1.6}


def generate(items: Sequence[dict[str, Any]], count: int, seed: int) -> list[dict[str, Any]]:
    """About `count` labelled requests; `items` lend their contents. Deterministic."""
    maker = _Maker(Contents(items), random.Random(seed))
    wordings = {**EASY, **HARD}
    rows: list[dict[str, Any]] = []
    unit = count / sum(_SHARE.get(task, 1.0) for task in wordings)
    for task, listed in wordings.items():
        for at in range(int(unit * _SHARE.get(task, 1.0))):
            number = at % len(listed)
            rows.append(maker.row(task, listed[number], f"own.{task}.{number}"))
    # A labelled row and its twin with an injected sentence differ in nothing else, so the sentence learns no weight.
    for item in items:
        if maker.chance.random() < TWINS and (twin := maker.twin(item)):
            rows.append(twin)
    return rows


class _Maker:
    """Fills wordings, frames and parameters from one source of chance."""

    def __init__(self, contents: Contents, chance: random.Random) -> None:
        self.contents = contents
        self.chance = chance

    def row(self, task: str, wording: str, template: str) -> dict[str, Any]:
        """One labelled request."""
        content, kind = self.contents.pick(task, self.chance, wording.lower())
        instruction = self.fill(wording, content, task)
        if task == "agentic":
            request = self.agent(instruction) if self.chance.random() < 0.75 else self.clerk(content)
        elif task in ("knowledge", "reasoning") and self.chance.random() < 0.1:
            request = self.exam(task, content)
        elif task in ("chat", "knowledge") or (task == "coding" and self.chance.random() < 0.1):
            request = self.bare(instruction)
        elif task == "simple_qa" and self.chance.random() < 0.25:
            request = self.over_articles(content)
        else:
            request = self.framed(task, instruction, self.inject(task, content))
        self.parameters(task, request)
        difficulty = self.chance.choice(_DIFFICULTY[task])
        if task in ("reasoning", "coding") and kind == "hard":
            difficulty = 4
        return {"task": task, "difficulty": difficulty, "template": template, "request": request}

    def fill(self, text: str, content: str, task: str) -> str:
        """Picks every alternative and fills every slot."""
        for _ in range(40):
            found = _CHOICE.search(text)
            if not found:
                break
            text = text[: found.start()] + self.chance.choice(found[1].split("|")) + text[found.end() :]
        for _ in range(6):
            text = _SLOT.sub(lambda slot: self.slot(slot[1], content, task), text)
        text = re.sub(r" {2,}", " ", text).replace(" ?", "?").strip()
        roll = self.chance.random()
        if roll < 0.12:
            text = text[:1].lower() + text[1:]
        elif roll < 0.2 and text.isascii() and task != "chat":
            text = self.chance.choice(
                ["Please ", "Could you ", "can you ", "pls ", "I'd like you to ", "Your task: ", "Task: "]
            ) + (text[:1].lower() + text[1:])
        elif roll < 0.23:
            text = text.upper()
        return text

    def slot(self, name: str, content: str, task: str) -> str:
        """The text of one slot."""
        chance = self.chance
        if name == "labels":
            group = chance.choice(SLOTS["labels"]).split("/")
            group = group[: chance.randint(2, len(group))]
            form = chance.randrange(6)
            if form == 0:
                return "[" + ", ".join(f'"{label}"' for label in group) + "]"
            if form == 1:
                return "\n" + "\n".join(f"- {label}" for label in group) + "\n"
            if form == 2:
                return (
                    "\n"
                    + "\n".join(f"{letter}) {label}" for letter, label in zip("ABCDEFGH", group, strict=False))
                    + "\n"
                )
            return (", ", " / ", " | ")[form - 3].join(group)
        if name == "fields":
            chosen = chance.sample(SLOTS["fields"], chance.randint(2, 5))
            return chance.choice([", ", "; ", "\n- "]).join(chosen)
        if name == "n":
            return str(chance.randint(2, 9))
        if name == "word":
            return self.contents.word(content, chance)
        if name == "phrase":
            return self.contents.phrase(chance)
        if name in ("row", "year"):
            return self.contents.cell(content, name, chance)
        if name == "question":
            return self.contents.question(content, chance)
        if name == "trivia":
            return self.contents.trivia(chance)
        return chance.choice(SLOTS[name]) if name in SLOTS else f"[{name}]"

    def inject(self, task: str, content: str) -> str:
        """Now and then a text that wants another model, somewhere in the content; of either kind in any task."""
        if self.chance.random() > 0.15:
            return content
        return self.pushed(content)

    def pushed(self, text: str) -> str:
        """The text with a sentence that begs for the big model or talks the work down: what it says must not count."""
        chance = self.chance
        sentence = chance.choice(SLOTS[chance.choice(["begging", "talking-down"])])
        at = text.find(" ", chance.randint(0, max(len(text) - 1, 1)))
        return chance.choice([f"{sentence}\n{text}", f"{text}\n{sentence}", f"{text[:at]} {sentence} {text[at:]}"])

    def twin(self, item: dict[str, Any]) -> dict[str, Any] | None:
        """A labelled row with such a sentence in its last turn, where that is plain text."""
        *before, last = item["request"]["messages"]
        if last["role"] != "user" or not isinstance(last["content"], str):
            return None
        request = {**item["request"], "messages": [*before, {**last, "content": self.pushed(last["content"])}]}
        return {key: item[key] for key in ("task", "difficulty", "template")} | {"request": request}

    def exam(self, task: str, content: str) -> dict[str, Any]:
        """A closed-book question as exams put it, most with options to choose from, often without any instruction."""
        chance = self.chance
        roll = chance.random()
        if task == "reasoning":
            stem = content if roll < 0.5 else self.fill(chance.choice(SLOTS["exam-reasoning"]), content, "chat")
        else:
            stem = (
                self.contents.trivia(chance) if roll < 0.2 else self.fill(chance.choice(SLOTS["exam"]), content, "chat")
            )
        text = stem
        if chance.random() < 0.85:
            pool = chance.choice(["expert", "exam-options", "exam-options", "numbers"])
            count = chance.choice([4, 4, 4, 5, 3])
            if pool == "numbers":
                options = [str(chance.choice([1, 2, 5, 10, 0.5, 3]) * chance.randint(0, 40)) for _ in range(count)]
            else:
                options = [self.fill(option, content, "chat") for option in chance.sample(SLOTS[pool], count)]
            mark = chance.choice(["{}. ", "{}) ", "({}) ", "{}: "])
            letters = chance.choice(["ABCDE", "ABCDE", "ABCDE", "abcde", "12345"])
            text += chance.choice(["\n", "\n", "\n\n", "\nOptions:\n"]) + chance.choice(["\n", "\n", "\n", "  "]).join(
                mark.format(letter) + option for letter, option in zip(letters, options, strict=False)
            )
        if chance.random() < 0.3:
            text = chance.choice(SLOTS["exam-heads"]) + chance.choice(["\n", "\n\n", " "]) + text
        if chance.random() < 0.6:
            text += chance.choice(["\n", "\n\n"]) + chance.choice(SLOTS["exam-ends"])
        request: dict[str, Any] = {"messages": [{"role": "user", "content": text}]}
        if chance.random() < 0.2:
            request["system"] = chance.choice(SLOTS["systems"])
        return request

    def over_articles(self, content: str) -> dict[str, Any]:
        """A bare question whose answer stands in the operator's material or in an earlier turn."""
        chance = self.chance
        question, tag, form = (
            self.contents.question(content, chance),
            *(chance.choice(SLOTS[name]) for name in ("tags", "forms")),
        )
        rule = self.fill(chance.choice(SLOTS["grounding"]), content, "chat")
        material = chance.choice([f"<{tag}>\n{content}\n</{tag}>", content, f"## {form}\n{content}", f"[1] {content}"])
        if chance.random() < 0.8:
            system = f"{rule}\n{material}" if chance.random() < 0.7 else f"{material}\n\n{rule}"
            return {"system": system, "messages": [{"role": "user", "content": question}]}
        turns = [
            {"role": "user", "content": material},
            {"role": "assistant", "content": chance.choice(SLOTS["replies"])},
        ]
        return {"system": rule, "messages": [*turns, {"role": "user", "content": question}]}

    def bare(self, text: str) -> dict[str, Any]:
        """A single user turn, sometimes under a general system prompt or after small talk."""
        request: dict[str, Any] = {"messages": [{"role": "user", "content": text}]}
        if self.chance.random() < 0.4:
            request["system"] = self.chance.choice(SLOTS["systems"])
        if self.chance.random() < 0.15:
            request["messages"] = self.before() + request["messages"]
        return request

    def before(self) -> list[dict[str, Any]]:
        """Earlier turns about something else: only the last user turn may decide."""
        chance = self.chance
        turns: list[dict[str, Any]] = []
        for _ in range(chance.choice([1, 1, 2])):
            task = chance.choice([*EASY, *HARD])
            content, _ = self.contents.pick(task, chance)
            turns.append({"role": "user", "content": content})
            turns.append({"role": "assistant", "content": chance.choice(SLOTS["replies"])})
        return turns

    def framed(self, task: str, instruction: str, content: str) -> dict[str, Any]:
        """Instruction and content in one of the layouts that people and programs use."""
        chance = self.chance
        label, tag = chance.choice(SLOTS["forms"]), chance.choice(SLOTS["tags"])
        system: str | None = chance.choice(SLOTS["systems"]) if chance.random() < 0.25 else None
        layout = chance.choice((3, 4, 12)) if task in EASY and chance.random() < 0.2 else chance.randrange(14)
        if layout <= 1:
            text = f"{instruction}\n\n{content}"
        elif layout == 2:
            text = f"{content}\n\n{instruction}"
        elif layout == 3:
            system, text = instruction, content
        elif layout == 4:
            rules = "\n".join(f"- {rule}" for rule in chance.sample(SLOTS["rules"], chance.randint(2, 4)))
            system, text = f"{chance.choice(SLOTS['roles'])}\n{instruction}\n{rules}", content
        elif layout == 5:
            text = f"<{tag}>\n{content}\n</{tag}>\n\n{instruction}"
        elif layout == 6:
            text = f"{instruction}\n<{tag}>{content}</{tag}>"
        elif layout == 7:
            text = f"{instruction}\n\n{label}: {content}\n\n{chance.choice(SLOTS['outputs'])}:"
        elif layout == 8:
            text = f'{instruction}\n"""\n{content}\n"""'
        elif layout == 9:
            text = f"# {chance.choice(['Task', 'Instruction', 'Goal'])}\n{instruction}\n\n# {label}\n{content}"
        elif layout == 10:
            text = f"{instruction}: {content}"
        elif layout == 11:
            text = f"{label}:\n{content}\n\n{instruction}"
        elif layout == 12:
            system, text = instruction, f"{label}: {content}"
        else:
            # After a turn with the content, the instruction alone.
            return {
                "messages": [
                    {"role": "user", "content": content},
                    {"role": "assistant", "content": chance.choice(SLOTS["replies"])},
                    {"role": "user", "content": instruction},
                ]
            }
        if chance.random() < 0.12:
            text += "\n\n" + chance.choice(SLOTS["endings"])
        request: dict[str, Any] = {"messages": [{"role": "user", "content": text}]}
        if system is not None:
            request["system"] = system
        if chance.random() < 0.08:
            request["messages"] = self.before() + request["messages"]
        if chance.random() < 0.3:
            request["messages"][-1]["content"] = [{"type": "text", "text": text}]
        return request

    def clerk(self, content: str) -> dict[str, Any]:
        """An agent that serves customers by the house's written rules, in the middle of a talk, often without tools."""
        chance = self.chance
        rules = [self.fill(rule, content, "chat") for rule in chance.sample(SLOTS["clerk-rules"], chance.randint(4, 9))]
        form = chance.choice(["\n- ", "\n\n", "\n", " "])
        system = self.fill(chance.choice(SLOTS["clerks"]), content, "chat") + form + form.join(rules)
        messages: list[dict[str, Any]] = [
            {"role": "user", "content": self.fill(chance.choice(SLOTS["clerk-asks"]), content, "chat")}
        ]
        for _ in range(chance.choice([0, 1, 1, 2, 3])):
            messages.append({"role": "assistant", "content": chance.choice(SLOTS["clerk-says"])})
            messages.append({"role": "user", "content": self.fill(chance.choice(SLOTS["clerk-asks"]), content, "chat")})
        return {"system": system, "messages": messages}

    def agent(self, instruction: str) -> dict[str, Any]:
        """Several tools, or a text protocol, in the middle of a loop."""
        chance = self.chance
        goal = chance.choice(SLOTS["goals"])
        in_system = instruction.lower().startswith(
            (
                "you",
                "act",
                "help",
                "assist",
                "respond",
                "each",
                "use",
                "call",
                "du ",
                "arb",
                "tu ",
                "vous",
                "eres",
                "act",
                "ты",
                "вы",
                "你",
            )
        )
        system = instruction if in_system else chance.choice(SLOTS["roles"])
        messages: list[dict[str, Any]] = [{"role": "user", "content": goal if in_system else instruction}]
        tooled = chance.random() < 0.75
        names = chance.sample(sorted(SLOTS["tools"]), chance.randint(2, 8))
        for step in range(chance.choice([0, 0, 1, 2, 3])):
            result = chance.choice(SLOTS["observations"])
            if tooled:
                call = {"type": "tool_use", "id": f"t{step}", "name": names[0], "input": {}}
                messages.append({"role": "assistant", "content": [{"type": "text", "text": "Next."}, call]})
                block = {"type": "tool_result", "tool_use_id": f"t{step}", "content": result}
                messages.append({"role": "user", "content": [block]})
            else:
                messages.append({"role": "assistant", "content": "Action: look further"})
                messages.append(
                    {"role": "user", "content": f"{chance.choice(['Observation: ', '', '$ ', 'Output: '])}{result}"}
                )
        request: dict[str, Any] = {"system": system, "messages": messages}
        if tooled:
            request["tools"] = [
                {
                    "name": name,
                    "description": SLOTS["tools"][name],
                    "input_schema": {"type": "object", "properties": {"value": {}}},
                }
                for name in names
            ]
        return request

    def parameters(self, task: str, request: dict[str, Any]) -> None:
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
            self.structure(task, request)

    def structure(self, task: str, request: dict[str, Any]) -> None:
        """A schema for the answer, as output format or as one forced tool; hard work is dressed so as well."""
        chance = self.chance
        names = {
            "classification": [chance.choice(["label", "category", "intent", "topic"])],
            "extraction": chance.sample(SLOTS["fields"], 3),
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
            name, description = chance.choice(SLOTS["stores"].get(task, SLOTS["stores"]["any"])).split(": ")
            request["tools"] = [{"name": name, "description": description, "input_schema": schema}]
            request["tool_choice"] = chance.choice([{"type": "tool", "name": name}, {"type": "any"}])
            if chance.random() < 0.4:
                rule = chance.choice(SLOTS["calling"].get(task, SLOTS["calling"]["any"]))
                request["system"] = f"{request.get('system', '')}\n{self.fill(rule, '', 'chat')}".strip()
        else:
            request["output_config"] = {"format": {"type": "json_schema", "schema": schema}}

"""Layouts that people and programs put an instruction and its material into: request bodies without parameters."""

from __future__ import annotations

import random
from typing import Any

from wordings.contents import Contents
from wordings.notation import Notation

Request = dict[str, Any]


class Frames:
    """Builds requests from an instruction, a content and chance."""

    def __init__(self, slots: dict[str, Any], contents: Contents, notation: Notation, chance: random.Random) -> None:
        self._slots, self._contents, self._notation, self._chance = slots, contents, notation, chance

    def bare(self, text: str, system_share: float = 0.3) -> Request:
        """A single user turn, sometimes under a general system prompt or after earlier talk."""
        request: Request = {"messages": [{"role": "user", "content": text}]}
        if self._chance.random() < system_share:
            request["system"] = self._chance.choice(self._slots["systems"])
        if self._chance.random() < 0.12:
            request["messages"] = self.before() + request["messages"]
        return request

    def before(self) -> list[dict[str, Any]]:
        """Earlier turns about something else: only the last user turn may decide."""
        turns: list[dict[str, Any]] = []
        for _ in range(self._chance.choice([1, 1, 2])):
            turns.append({"role": "user", "content": self._contents.any(self._chance)})
            turns.append({"role": "assistant", "content": self._notation.one("replies")})
        return turns

    def around(self, instruction: str, content: str, *, is_easy: bool) -> Request:
        """Instruction and content in one of sixteen layouts; easy work stands more often in the system prompt."""
        chance = self._chance
        label, tag = chance.choice(self._slots["forms"]), chance.choice(self._slots["tags"])
        system: str | None = chance.choice(self._slots["systems"]) if chance.random() < 0.25 else None
        layout = chance.choice((3, 4, 12)) if is_easy and chance.random() < 0.2 else chance.randrange(16)
        if layout <= 1:
            text = f"{instruction}\n\n{content}"
        elif layout == 2:
            text = f"{content}\n\n{instruction}"
        elif layout == 3:
            system, text = instruction, content
        elif layout == 4:
            rules = "\n".join(f"- {rule}" for rule in chance.sample(self._slots["rules"], chance.randint(2, 4)))
            system, text = f"{chance.choice(self._slots['roles'])}\n{instruction}\n{rules}", content
        elif layout == 5:
            text = f"<{tag}>\n{content}\n</{tag}>\n\n{instruction}"
        elif layout == 6:
            text = f"{instruction}\n<{tag}>{content}</{tag}>"
        elif layout == 7:
            text = f"{instruction}\n\n{label}: {content}\n\n{chance.choice(self._slots['outputs'])}:"
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
        elif layout == 13:
            text = f"{content}\n{chance.choice(['---', '====', '***', ''])}\n{instruction}"
        elif layout == 14:
            text = self._few_shot(instruction, content, label)
        else:
            # After a turn with the content, the instruction alone.
            return {
                "messages": [
                    {"role": "user", "content": content},
                    {"role": "assistant", "content": self._notation.one("replies")},
                    {"role": "user", "content": instruction},
                ]
            }
        if chance.random() < 0.12:
            text += "\n\n" + chance.choice(self._slots["endings"])
        request: Request = {"messages": [{"role": "user", "content": text}]}
        if system is not None:
            request["system"] = system
        if chance.random() < 0.08:
            request["messages"] = self.before() + request["messages"]
        if chance.random() < 0.3:
            request["messages"][-1]["content"] = [{"type": "text", "text": text}]
        return request

    def _few_shot(self, instruction: str, content: str, label: str) -> str:
        """Instruction, one or two solved examples whose answers say nothing, then the content."""
        chance = self._chance
        output = chance.choice(self._slots["outputs"])
        shots = [
            f"{label}: {self._contents.short(chance)}\n{output}: {chance.choice(self._slots['shot-answers'])}"
            for _ in range(chance.choice((1, 2)))
        ]
        return "\n\n".join([instruction, *shots, f"{label}: {content}\n{output}:"])

    def operated(self, operator: str, turn: str) -> Request:
        """An operator's system prompt and the bare material as the user's turn, sometimes after an earlier pair."""
        chance = self._chance
        if chance.random() < 0.15:
            turn = f"{chance.choice(self._slots['forms'])}: {turn}"
        messages: list[dict[str, Any]] = [{"role": "user", "content": turn}]
        if chance.random() < 0.1:
            reply = {"role": "assistant", "content": chance.choice(self._slots["shot-answers"])}
            messages = [{"role": "user", "content": self._contents.short(chance)}, reply, *messages]
        system: Any = operator
        if chance.random() < 0.15:
            system = [{"type": "text", "text": operator, "cache_control": {"type": "ephemeral"}}]
        return {"system": system, "messages": messages}

    def exam(self, stem: str) -> Request:
        """A closed-book question as exams put it: options to choose from if it has none, with or without heading."""
        chance, slots = self._chance, self._slots
        text = stem
        if "\nA" not in text and chance.random() < 0.6:
            pool = chance.choice(["expert", "exam-options", "exam-options", "numbers"])
            count = chance.choice([4, 4, 4, 5, 3])
            if pool == "numbers":
                options = [str(chance.choice([1, 2, 5, 10, 0.5, 3]) * chance.randint(0, 40)) for _ in range(count)]
            else:
                options = [self._notation.fill(option, "") for option in chance.sample(slots[pool], count)]
            mark = chance.choice(["{}. ", "{}) ", "({}) ", "{}: "])
            letters = chance.choice(["ABCDE", "ABCDE", "ABCDE", "abcde", "12345"])
            text += chance.choice(["\n", "\n", "\n\n", "\nOptions:\n"]) + chance.choice(["\n", "\n", "\n", "  "]).join(
                mark.format(letter) + option for letter, option in zip(letters, options, strict=False)
            )
        if chance.random() < 0.25:
            text = chance.choice(slots["exam-heads"]) + chance.choice(["\n", "\n\n", " "]) + text
        if chance.random() < 0.45:
            text += chance.choice(["\n", "\n\n"]) + chance.choice(slots["exam-ends"])
        return self.bare(text, 0.2)

    def over_articles(self, rule: str, content: str, question: str) -> Request:
        """A bare question whose answer stands in the operator's material or in an earlier turn."""
        chance = self._chance
        tag, form = (chance.choice(self._slots[name]) for name in ("tags", "forms"))
        material = chance.choice([f"<{tag}>\n{content}\n</{tag}>", content, f"## {form}\n{content}", f"[1] {content}"])
        roll = chance.random()
        if roll < 0.55:
            system = f"{rule}\n{material}" if chance.random() < 0.7 else f"{material}\n\n{rule}"
            return {"system": system, "messages": [{"role": "user", "content": question}]}
        if roll < 0.8:
            text = chance.choice([f"{material}\n\n{question}", f"{question}\n\n{material}"])
            return {"system": rule, "messages": [{"role": "user", "content": text}]}
        turns = [
            {"role": "user", "content": material},
            {"role": "assistant", "content": self._notation.one("replies")},
        ]
        return {"system": rule, "messages": [*turns, {"role": "user", "content": question}]}

    def after(self, earlier: Request, turn: str) -> Request:
        """A short turn after an earlier request and its answer."""
        reply = {"role": "assistant", "content": self._notation.one("replies")}
        return {**earlier, "messages": [*earlier["messages"], reply, {"role": "user", "content": turn}]}

    def clerk(self) -> Request:
        """An agent that serves customers by the house's written rules, in the middle of a talk, often without tools."""
        chance, one = self._chance, self._notation.one
        rules = [
            self._notation.fill(rule, "") for rule in chance.sample(self._slots["clerk-rules"], chance.randint(4, 9))
        ]
        form = chance.choice(["\n- ", "\n\n", "\n", " "])
        return self._talk({"system": one("clerks") + form + form.join(rules)}, one("clerk-asks"))

    def _talk(self, request: Request, ask: str) -> Request:
        """Customer and agent in turns."""
        messages: list[dict[str, Any]] = [{"role": "user", "content": ask}]
        for _ in range(self._chance.choice([0, 1, 1, 2, 3])):
            messages.append({"role": "assistant", "content": self._notation.one("clerk-says")})
            messages.append({"role": "user", "content": self._notation.one("clerk-asks")})
        return {**request, "messages": messages}

    def agent(self, operator: str | None, goal: str, *, may_talk: bool) -> Request:
        """Several tools, or a text protocol, often in the middle of a loop; or a talk with a customer."""
        chance, slots = self._chance, self._slots
        request: Request = {} if operator is None else {"system": operator}
        tooled = operator is None or chance.random() < 0.6
        if may_talk and chance.random() < 0.4:
            request = self._talk(request, goal)
        else:
            messages: list[dict[str, Any]] = [{"role": "user", "content": goal}]
            name = chance.choice(sorted(slots["tools"]))
            for step in range(chance.choice([0, 0, 0, 1, 2, 3])):
                result = chance.choice(slots["observations"])
                if tooled:
                    call = {"type": "tool_use", "id": f"t{step}", "name": name, "input": {}}
                    messages.append({"role": "assistant", "content": [{"type": "text", "text": "Next."}, call]})
                    block = {"type": "tool_result", "tool_use_id": f"t{step}", "content": result}
                    messages.append({"role": "user", "content": [block]})
                else:
                    messages.append({"role": "assistant", "content": "Action: look further"})
                    form = chance.choice(["Observation: ", "", "$ ", "Output: "])
                    messages.append({"role": "user", "content": f"{form}{result}"})
            request["messages"] = messages
        if tooled:
            request["tools"] = [
                {
                    "name": name,
                    "description": slots["tools"][name],
                    "input_schema": {"type": "object", "properties": {"value": {}}},
                }
                for name in chance.sample(sorted(slots["tools"]), chance.randint(2, 8))
            ]
        return request

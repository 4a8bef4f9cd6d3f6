"""The notation of our wordings: `{a|b}` picks one alternative, `[name]` is a slot filled by chance or from a
content."""

from __future__ import annotations

import random
import re
from typing import Any

from wordings.contents import Contents

_CHOICE = re.compile(r"\{([^{}]*\|[^{}]*)\}")
_SLOT = re.compile(r"\[([a-z-]+)\]")
_POLITE = ("Please ", "Could you ", "can you ", "pls ", "I'd like you to ", "Your task: ", "Task: ")


class Notation:
    """Turns a wording into a text; all chance comes from the one source given."""

    def __init__(self, slots: dict[str, Any], contents: Contents, chance: random.Random) -> None:
        self._slots, self._contents, self._chance = slots, contents, chance

    def fill(self, text: str, content: str) -> str:
        """Picks every alternative and fills every slot."""
        for _ in range(80):
            found = _CHOICE.search(text)
            if not found:
                break
            text = text[: found.start()] + self._chance.choice(found[1].split("|")) + text[found.end() :]
        for _ in range(6):
            text = _SLOT.sub(lambda slot: self._slot(slot[1], content), text)
        return re.sub(r" {2,}", " ", text).replace(" ?", "?").strip()

    def varied(self, text: str, is_asked: bool) -> str:
        """The same instruction as people vary it: without a capital, with a word of courtesy, or shouted."""
        roll = self._chance.random()
        if roll < 0.12:
            return text[:1].lower() + text[1:]
        if roll < 0.2 and text.isascii() and is_asked:
            return self._chance.choice(_POLITE) + text[:1].lower() + text[1:]
        return text.upper() if roll < 0.22 and len(text) < 200 else text

    def one(self, name: str) -> str:
        """A filled entry of a list of slots."""
        return self.fill(self._chance.choice(self._slots[name]), "")

    def _slot(self, name: str, content: str) -> str:
        chance = self._chance
        if name == "labels":
            return self._labels()
        if name == "fields":
            chosen = chance.sample(self._slots["fields"], chance.randint(2, 5))
            return chance.choice([", ", "; ", "\n- "]).join(chosen)
        if name == "n":
            return str(chance.randint(2, 9))
        if name == "word":
            return self._contents.word(content, chance)
        if name == "phrase":
            return self._contents.phrase(chance)
        if name in ("row", "year"):
            return self._contents.cell(content, name, chance)
        if name == "question":
            return self._contents.question(content, chance)
        if name == "trivia":
            return self._contents.trivia(chance)
        return str(chance.choice(self._slots[name])) if name in self._slots else f"[{name}]"

    def _labels(self) -> str:
        chance = self._chance
        group = chance.choice(self._slots["labels"]).split("/")
        group = group[: chance.randint(2, len(group))]
        form = chance.randrange(6)
        if form == 0:
            return "[" + ", ".join(f'"{label}"' for label in group) + "]"
        if form == 1:
            return "\n" + "\n".join(f"- {label}" for label in group) + "\n"
        if form == 2:
            lettered = (f"{letter}) {label}" for letter, label in zip("ABCDEFGH", group, strict=False))
            return "\n" + "\n".join(lettered) + "\n"
        return (", ", " / ", " | ")[form - 3].join(group)

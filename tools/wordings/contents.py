"""Contents to put under an instruction: those of training rows, cut out of their wordings, and some of our own."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

_MATHS = {"gsm8k", "aqua", "theoremqa", "cmath", "own_puzzles", "gsm8k/aqua/theoremqa", "gsm8k/theoremqa", "folio"}
_CODE = {"thealgorithms", "humaneval", "classeval"}
_SPECS = {"mbpp", "exercism"}
_UTTERANCES = {"banking77", "clinc150", "snips", "restaurant8k"}
_TABLES = {"tatqa"}
_PASSAGES = {
    "xquad",
    "ntrex",
    "legal_summarization",
    "medical_abstracts",
    "pubmedqa",
    "scitldr",
    "gum",
    "gum/ntrex",
    "qmsum",
    "bc5cdr",
}
# Words of a wording that name the kind of content it speaks about.
_NAMED = {
    "code": ("function", "script", "code", "diff", "program", "file"),
    "maths": ("problem", "exercise", "question", "school subject"),
    "tables": ("table", "csv"),
}
_ASKS = (
    "Who is {}?",
    "When did {} happen?",
    "What is said about {}?",
    "Where is {}?",
    "What does {} do?",
    "Which year is given for {}?",
    "How many {} are there?",
    "What is the name of {}?",
    "Why did {} change?",
    "What was {}?",
    "what does it say about {}",
    "{} - when and where?",
)


def read(name: str) -> Any:
    """One of the YAML files of this folder."""
    return yaml.safe_load((Path(__file__).parent / name).read_text(encoding="utf-8"))


class Contents:
    """Pools of texts by kind."""

    def __init__(self, items: Sequence[dict[str, Any]]) -> None:
        pools: dict[str, set[str]] = {
            name: set() for name in ("maths", "code", "specs", "utterances", "tables", "passages", "trivia")
        }
        for item in items:
            text = _longest(_last_text(item["request"]), item.get("source", ""))
            for name, sources in (
                ("maths", _MATHS),
                ("code", _CODE),
                ("specs", _SPECS),
                ("utterances", _UTTERANCES),
                ("tables", _TABLES),
                ("passages", _PASSAGES),
            ):
                if (
                    item.get("source", "") in sources
                    and 12 < len(text) < 6000
                    and (name != "maths" or item["task"] == "reasoning")
                ):
                    pools[name].add(text)
            if item.get("source", "") == "nq_open" and "?" not in text[:-1] and len(text) < 120:
                pools["trivia"].add(text)
        # Own texts count several times: they are few and clean.
        own: dict[str, list[str]] = read("texts.yaml")
        self._pools = {name: sorted(pool) + own.get(name, []) * 4 for name, pool in pools.items()}
        self._pools["specs"] = self._pools["specs"] or own["maths"]

    def pick(self, task: str, chance: random.Random, wording: str = "") -> tuple[str, str]:
        """A content for a task that goes with the wording, and how hard it is (`hard` for maths, logic and code)."""
        if "[row]" in wording and chance.random() < 0.85:
            return chance.choice(self._pools["tables"]), "easy"
        named = [kind for kind, marks in _NAMED.items() if any(mark in wording for mark in marks)]
        if named and chance.random() < 0.5 and task not in ("reasoning", "coding"):
            kind = chance.choice(named)
        elif task == "reasoning":
            kind = chance.choices(["maths", "tables", "passages"], [8, 2, 0.4])[0]
        elif task == "coding":
            kind = chance.choices(["specs", "code"], [5, 6])[0]
        elif task == "simple_qa":
            kind = chance.choices(["passages", "tables", "code", "maths"], [8, 3, 0.3, 0.5])[0]
        else:
            kind = chance.choices(
                ["passages", "utterances", "maths", "code", "tables", "trivia", "specs"], [7, 3, 5, 4.5, 2, 1.5, 1]
            )[0]
        return chance.choice(self._pools[kind]), "hard" if kind in ("maths", "code") else "easy"

    def word(self, content: str, chance: random.Random) -> str:
        """A name out of the content, or any longer word of it."""
        words = [word.strip(".,;:()\"'|") for word in content[:1500].split()[1:]]
        names = [word for word in words if word[:1].isupper() and len(word) > 3] or [
            word for word in words if 4 < len(word) < 20
        ]
        return chance.choice(names) if names else "it"

    def phrase(self, chance: random.Random) -> str:
        """A short saying to be put into another language."""
        return chance.choice(self._pools["utterances"])

    def cell(self, content: str, part: str, chance: random.Random) -> str:
        """A row label of a table (or a word of a text), or a year."""
        if part == "year":
            years = [word for word in content[:600].replace("|", " ").split() if len(word) == 4 and word.isdigit()]
            return chance.choice(years) if years else str(chance.randint(2005, 2025))
        labels = [line.strip(" |").replace(",", "|").split("|")[0].strip() for line in content.split("\n")[1:]]
        labels = [label for label in labels if 3 < len(label) < 60 and not label[0].isdigit() and "---" not in label]
        return chance.choice(labels).lower() if labels else self.word(content, chance)

    def question(self, content: str, chance: random.Random) -> str:
        """A question that a text can answer: about a name in it, or one of the general ones."""
        if content.count("|") > 5 and chance.random() < 0.7:
            row, year = self.cell(content, "row", chance), self.cell(content, "year", chance)
            return chance.choice(
                ["What was {} in {}?", "How much was {} in {}?", "what is the {} for {}", "{} {}?"]
            ).format(row, year)
        if chance.random() < 0.25:
            return self.trivia(chance)
        return chance.choice(_ASKS).format(self.word(content, chance))

    def trivia(self, chance: random.Random) -> str:
        """A closed-book question."""
        text = chance.choice(self._pools["trivia"])
        return text if text.endswith("?") or chance.random() < 0.5 else text + "?"


def _last_text(request: dict[str, Any]) -> str:
    content = request["messages"][-1]["content"]
    if isinstance(content, str):
        return content
    return "\n".join(block["text"] for block in content if isinstance(block.get("text"), str))


def _longest(text: str, source: str) -> str:
    """The paragraph that is the content: code and tables keep their blank lines, all else is one paragraph."""
    if source in _CODE:
        fence = text.split("```")
        if len(fence) >= 3:
            return max(fence[1::2], key=len).removeprefix("python").strip()
        paragraphs = text.split("\n\n")
        return "\n\n".join(paragraphs[1:-1]) if len(paragraphs) > 3 else text
    if source in _TABLES or source == "folio":
        paragraphs = text.split("\n\n")
        return max(paragraphs, key=len).strip()
    pieces = [
        piece
        for paragraph in text.split("\n\n")
        for piece in ([paragraph] if len(paragraph) > 40 else paragraph.split("\n"))
    ]
    return max(pieces, key=len).strip(' \n"<>`')

"""Contents to put under an instruction: our own, and those of training rows, cut out of their wordings."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

# Where the contents of a kind come from among the labelled rows, by source.
_SOURCES = {
    "maths": {"gsm8k", "aqua", "theoremqa", "cmath", "own_puzzles", "gsm8k/aqua/theoremqa", "gsm8k/theoremqa"},
    "logic": {"folio"},
    "code": {"thealgorithms", "humaneval", "classeval"},
    "specs": {"mbpp", "exercism"},
    "utterances": {"banking77", "clinc150", "snips", "restaurant8k"},
    "tables": {"tatqa"},
    "passages": {
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
    },
}
# Kinds of our own texts that join a kind of the labelled rows.
_JOINED = {"threads": "passages", "records": "passages", "physics_chemistry": "maths"}
# Words of a wording that name the kind of content it speaks about, for easy work and for hard work.
_NAMED_HARD = {
    "logic": ("premise", "conclusion", "follows", "clue", "rules", "facts", "statement", "hypothesis", "true / false"),
    "tables": ("table", "[row]", "percent", "between the years", "filing", "spreadsheet", "column"),
    "errors": ("error", "stack trace", "exception", "segfault"),
    "code": ("fix", "debug", "refactor", "this code", "the function", "bug", "review", "optimi", "port ", "the class"),
}
_NAMED = {
    "code": ("function", "script", "code", "diff", "program", "file", "class"),
    "maths": ("problem", "exercise", "school subject"),
    "tables": ("table", "csv", "column", "spreadsheet"),
    "errors": ("error", "stack trace", "exception"),
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
# How often each kind stands under an instruction of a task; other tasks get the mixture of `any`.
_KINDS = {
    "reasoning": {"maths": 10, "logic": 2, "tables": 1.5, "passages": 0.3},
    "coding": {"specs": 5, "code": 6, "errors": 1},
    "simple_qa": {"passages": 8, "tables": 3, "code": 0.3, "maths": 0.5},
    "agentic": {"passages": 2, "tables": 1, "specs": 1, "errors": 1},
    "any": {
        "passages": 7,
        "utterances": 3,
        "maths": 5,
        "code": 4.5,
        "tables": 2,
        "trivia": 1.5,
        "specs": 1,
        "errors": 0.5,
    },
}


def read(name: str) -> Any:
    """One of the YAML files of this folder."""
    text = (Path(__file__).parent / name).read_text(encoding="utf-8")
    return yaml.load(text, Loader=yaml.CSafeLoader)  # ten times as fast as the one in Python


class Contents:
    """Pools of texts by kind; our own texts are a third of each pool or more, whatever the labelled rows bring."""

    def __init__(self, items: Sequence[dict[str, Any]]) -> None:
        borrowed: dict[str, set[str]] = {name: set() for name in (*_SOURCES, "trivia", "errors", "logic")}
        for item in items:
            source = item.get("source", "")
            text = _longest(_last_text(item["request"]), source)
            for name, sources in _SOURCES.items():
                fits = source in sources and (name not in ("maths", "logic") or item["task"] == "reasoning")
                if fits and 12 < len(text) < 6000:
                    borrowed[name].add(text)
            if source == "nq_open" and "?" not in text[:-1] and len(text) < 120:
                borrowed["trivia"].add(text)
        own: dict[str, list[str]] = {name: [] for name in borrowed}
        for name, texts in read("material.yaml").items():
            own[_JOINED.get(name, "trivia" if name == "questions" else name)] += texts
        self._pools = {
            name: sorted(pool) + own[name] * max(1, len(pool) // (2 * len(own[name])))
            for name, pool in borrowed.items()
        }

    def pick(self, task: str, chance: random.Random, wording: str = "") -> tuple[str, str]:
        """A content for a task that goes with the wording, and its kind."""
        if "[row]" in wording and chance.random() < 0.85:
            return chance.choice(self._pools["tables"]), "tables"
        marked = _NAMED_HARD if task in ("reasoning", "coding") else _NAMED
        named = [kind for kind, marks in marked.items() if any(mark in wording for mark in marks)]
        if task in ("reasoning", "coding"):
            fitting = ("logic", "tables") if task == "reasoning" else ("errors", "code")
            named = [kind for kind in named if kind in fitting]
        if named and chance.random() < (0.8 if marked is _NAMED_HARD else 0.5):
            kind = chance.choice(named)
        else:
            weights = _KINDS.get(task, _KINDS["any"])
            kind = chance.choices(list(weights), list(weights.values()))[0]
        return chance.choice(self._pools[kind]), kind

    def any(self, chance: random.Random) -> str:
        """A text of any kind, as something said before."""
        return self.pick("any", chance)[0]

    def short(self, chance: random.Random) -> str:
        """A text of a line or two, as the material of an example."""
        return chance.choice(self._pools[chance.choice(("utterances", "trivia", "utterances", "passages"))])[:200]

    def trivia(self, chance: random.Random) -> str:
        """A closed-book question."""
        text = chance.choice(self._pools["trivia"])
        return text if text.endswith("?") or chance.random() < 0.5 else text + "?"

    def word(self, content: str, chance: random.Random) -> str:
        """A name out of the content, or any longer word of it."""
        words = [word.strip(".,;:()\"'|[]{}") for word in content[:1500].split()[1:]]
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


def _last_text(request: dict[str, Any]) -> str:
    content = request["messages"][-1]["content"]
    if isinstance(content, str):
        return content
    return "\n".join(block["text"] for block in content if isinstance(block.get("text"), str))


def _longest(text: str, source: str) -> str:
    """The paragraph that is the content: code and tables keep their blank lines, all else is one paragraph."""
    if source in _SOURCES["code"]:
        fence = text.split("```")
        if len(fence) >= 3:
            return max(fence[1::2], key=len).removeprefix("python").strip()
        paragraphs = text.split("\n\n")
        return "\n\n".join(paragraphs[1:-1]) if len(paragraphs) > 3 else text
    if source in _SOURCES["tables"] or source == "folio":
        paragraphs = text.split("\n\n")
        return max(paragraphs, key=len).strip()
    pieces = [
        piece
        for paragraph in text.split("\n\n")
        for piece in ([paragraph] if len(paragraph) > 40 else paragraph.split("\n"))
    ]
    return max(pieces, key=len).strip(' \n"<>`')

"""The words of an answer: one writer per kind of task, each from the text of the request."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from router.simulator.dice import Dice
from router.simulator.schema import DATE, EMAIL, NAME, NUMBER, URL
from router.simulator.task import Task
from router.simulator.words import closest_sentence, keywords, sentences, summary, target_tongue, translated

DEFINITION = re.compile(r"(?:def|function|fn)\s+(\w+)\s*\(([^)]*)\)")
NAMED_FIELDS = re.compile(r"(?:fields?|keys|json with|extract(?: the)?)\s*:?\s*([^\n.?!]{3,200})", re.IGNORECASE)
OPENINGS = ("Here is how I would look at it.", "Good question.", "In short:", "Let me answer that directly.")
HINTS: Mapping[str, tuple[str, ...]] = {
    "account": ("log in", "login", "password", "sign in", "username", "profile"),
    "billing": ("charge", "invoice", "refund", "paid", "payment", "card", "receipt", "price"),
    "technical": ("error", "crash", "bug", "fails", "slow", "broken", "install", "timeout"),
    "shipping": ("package", "deliver", "parcel", "tracking", "arrive", "courier"),
    "positive": ("great", "love", "excellent", "good", "happy", "thank", "wonderful", "best"),
    "negative": ("bad", "terrible", "hate", "awful", "worst", "poor", "disappoint", "never again"),
    "spam": ("winner", "free", "click", "prize", "offer", "urgent"),
    "urgent": ("asap", "immediately", "outage", "down", "emergency"),
}


def write(task: Task, dice: Dice) -> str:
    """The answer to a task as plain text."""
    writers: Mapping[str, Callable[[Task, Dice], str]] = {
        "classification": _classification,
        "extraction": _extraction,
        "translation": lambda task, _: translated(task.material, target_tongue(task.instruction)),
        "summarization": _summarization,
        "simple_qa": lambda task, _: closest_sentence(task.instruction, task.material),
        "rewrite": _rewrite,
        "coding": _coding,
        "reasoning": _reasoning,
        "knowledge": _knowledge,
    }
    text = writers.get(task.kind, _chat)(task, dice).strip()
    return text or "I need a little more to go on: which text should I work with?"


def _classification(task: Task, dice: Dice) -> str:
    if not task.labels:
        lowered = task.instruction.lower()
        pairs = (("yes", "no"), ("true", "false"), ("positive", "negative"))
        options: tuple[str, ...] = next((pair for pair in pairs if all(word in lowered for word in pair)), ())
        options = options or (("positive", "negative", "neutral") if "sentiment" in lowered else ())
        return dice.choice("label", options) if options else (keywords(task.material, 1) or ["other"])[0]
    return max(task.labels, key=lambda label: (_fit(label, task.material), dice.number("label/" + label)))


def _fit(label: str, text: str) -> int:
    """How much a text speaks of a label: its own words, then words that hint at it."""
    lowered = text.lower()
    own = [word for word in re.split(r"[\W_]+", label.lower()) if len(word) > 2]
    spoken = sum(3 for word in own if re.search(rf"\b{re.escape(word[:6])}", lowered))
    hints = HINTS.get(label.lower(), ())
    return spoken + sum(4 for hint in hints if hint in lowered)


def _extraction(task: Task, dice: Dice) -> str:
    found: dict[str, Any] = {}
    match = NAMED_FIELDS.search(task.instruction)
    names = re.split(r"\s*(?:,|;|\band\b)\s*", match[1].rpartition(":")[2]) if match else []
    for name in names[:8]:
        key = re.sub(r"\W+", "_", name.strip().lower()).strip("_")
        if key and len(key) < 40:
            found[key] = _find(key, task.material, dice)
    if not found:
        for key, pattern in (("names", NAME), ("emails", EMAIL), ("urls", URL), ("dates", DATE), ("numbers", NUMBER)):
            hits = list(dict.fromkeys(pattern.findall(task.material[:20_000])))[:6]
            if hits:
                found[key] = hits
    return json.dumps(found or {"keywords": keywords(task.material, 5)}, ensure_ascii=False, indent=2)


def _find(key: str, text: str, dice: Dice) -> str | None:
    kinds = (
        ("mail", EMAIL),
        ("url", URL),
        ("link", URL),
        ("date", DATE),
        ("when", DATE),
        ("name", NAME),
        ("person", NAME),
        ("company", NAME),
        ("author", NAME),
        ("amount", NUMBER),
        ("price", NUMBER),
        ("total", NUMBER),
        ("number", NUMBER),
        ("quantity", NUMBER),
        ("id", NUMBER),
    )
    for part, pattern in kinds:
        if part in key:
            hits = pattern.findall(text[:20_000])
            return str(hits[0]) if hits else None
    words = keywords(text, 12)
    return dice.choice("field/" + key, words) if words else None


def _summarization(task: Task, _: Dice) -> str:
    text = summary(task.material, 3)
    if "bullet" in task.instruction.lower() or "key points" in task.instruction.lower():
        return "\n".join(f"- {piece}" for piece in sentences(text))
    if "headline" in task.instruction.lower() or "title" in task.instruction.lower():
        return " ".join(word.capitalize() for word in keywords(task.material, 6))
    return text


def _rewrite(task: Task, _: Dice) -> str:
    pieces = []
    for piece in sentences(task.material):
        piece = re.sub(r"\s+([,.!?])", r"\1", re.sub(r"\s+", " ", piece)).strip()
        piece = piece[:1].upper() + piece[1:]
        pieces.append(piece if piece[-1:] in ".!?:;" else piece + ".")
    return " ".join(pieces)


def _coding(task: Task, dice: Dice) -> str:
    text = f"{task.instruction}\n{task.material}"
    match = next((found for found in DEFINITION.finditer(text) if not found[1].startswith("__")), None)
    words = keywords(task.instruction, 12) or ["value"]
    name = match[1] if match else "_".join(word.replace("-", "_").replace("'", "") for word in words[:2])
    names = [re.split(r"[:=]", part)[0].strip(" *&") for part in match[2].split(",")] if match else ["items"]
    names = [part for part in names if part.isidentifier() and part not in ("self", "cls")] or ["items"]
    subject = names[0]
    body = dice.choice(
        "code",
        (
            f"    result = []\n    for item in {subject}:\n        if item not in result:\n"
            "            result.append(item)\n    return result",
            f"    seen = {{}}\n    for index, item in enumerate({subject}):\n        seen.setdefault(item, index)\n"
            "    return sorted(seen, key=seen.get)",
            f"    if not {subject}:\n        return None\n    total = {subject}[0]\n"
            f"    for item in {subject}[1:]:\n        total = total + item\n    return total",
        ),
    )
    return (
        f"Here is an implementation of `{name}`.\n\n```python\ndef {name}({', '.join(names)}):\n"
        f'    """Work on {" and ".join(words[:2])}, one pass over the input."""\n{body}\n```\n\n'
        f"It makes one pass over `{subject}`, so the time grows with its length. The empty input is handled, and the "
        f"order of first appearance is kept. Two cases worth a test: an empty `{subject}`, and one with repeated items."
    )


def _reasoning(task: Task, dice: Dice) -> str:
    values = [float(item.replace(",", "")) for item in re.findall(r"\d[\d,]*(?:\.\d+)?", task.material)[:6]]
    words = keywords(task.material, 5) or ["the question"]
    steps = [f"First, what is given: {', '.join(words)}."]
    total = values[0] if values else float(dice.below("start", 9) + 1)
    for index, value in enumerate(values[1:], 1):
        sign = dice.choice(f"step/{index}", ("+", "-", "×"))
        after = total + value if sign == "+" else total - value if sign == "-" else total * value
        steps.append(f"Combining with {value:g}: {total:g} {sign} {value:g} = {after:g}.")
        total = after
    steps.append(f"Checking against the condition on {words[-1]}: the steps fit together.")
    numbered = "\n".join(f"{number}. {step}" for number, step in enumerate(steps, 1))
    return f"Let me work through this step by step.\n\n{numbered}\n\n**Answer: {total:g}**"


def _knowledge(task: Task, dice: Dice) -> str:
    words = keywords(task.instruction, 4) or ["this"]
    subject = " ".join(words[:2])
    return (
        f"{dice.choice('opening', OPENINGS)} The question turns on {subject}. "
        f"The usual account names {words[-1]} as the deciding point, and the sources agree on the outline while they "
        f"differ in detail. What is commonly overlooked is how {words[0]} changed the picture afterwards."
    )


def _chat(task: Task, dice: Dice) -> str:
    words = keywords(task.instruction, 3)
    about = f" about {' and '.join(words[:2])}" if words else ""
    return dice.choice(
        "chat",
        (
            f"Happy to help{about}. Here is a thought to start with: keep it simple, change one thing at a time.",
            f"Sure, let us talk{about}. Tell me what matters most to you and I will go from there.",
            f"Hello! I would begin{about} with the part that is clear, then ask about the rest.",
        ),
    )


def musing(task: Task, dice: Dice, length: int) -> str:
    """Thinking aloud for about `length` words."""
    words = keywords(f"{task.instruction} {task.material[:2_000]}", 10) or ["request"]
    frames = (
        "The request asks for {kind}, and the part that matters is {a}.",
        "I should look at {a} before {b}.",
        "If {a} holds, then {b} follows, so I check that first.",
        "The wording about {a} could mislead; reading it again with {b} in mind settles it.",
        "A short answer that covers {a} is enough here.",
    )
    spoken: list[str] = []
    count = index = 0
    while count < length:
        frame = frames[index % len(frames)] if index < len(frames) else dice.choice(f"frame/{index}", frames[1:])
        first, second = dice.choice(f"a/{index}", words), dice.choice(f"b/{index}", words)
        spoken.append(frame.format(kind=task.kind.replace("_", " "), a=first, b=second))
        count += len(spoken[-1].split())
        index += 1
    return " ".join(spoken)

"""What a request asks for, as far as an answer that reads like life needs to know."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from router.simulator.words import sentences

# Tried in order; the first that matches the instruction decides.
SIGNS: tuple[tuple[str, str], ...] = (
    ("translation", r"\btranslat|\btradu[czi]|übersetz|翻译|\bвідклад|перевед|traduis"),
    (
        "summarization",
        r"\bsummar|\btl;?dr|\bminutes of\b|\bheadline|\brésum|\bresum(e|en|ir)\b|zusammenfass|摘要|\bgist\b"
        r"|\bkey points|\bcommit message",
    ),
    (
        "classification",
        r"\bclassif|\bcategor|\bsentiment|\blabel\b|\bintent\b|\bwhich (of|one)\b.*\bone of\b|\bone of (the|these)"
        r"|\brate\b.*\b1\b.*\b5\b|\btrue or false\b|\byes or no\b|klassifi|clasifi|classez|分类|\bspam\b",
    ),
    (
        "extraction",
        r"\bextract|\bpull out\b|\bfind all\b|\blist (all|the|every)\b.*\b(names|dates|amounts|entities|emails)"
        r"|\bas json\b|\bjson\b.*\b(keys|fields)|extrai|extraer|\bextrah|提取|\bfields?:",
    ),
    (
        "coding",
        r"```|\bfunction\b|\bpython\b|\bjavascript\b|\btypescript\b|\bcode\b|\brefactor|\bbug\b|\bunit tests?\b|\bsql\b"
        r"|\bimplement\b|\balgorithm|\bclass\b \w+|def \w+\(|\brust\b|\bregex",
    ),
    (
        "reasoning",
        r"\bstep by step|\bprove\b|\bhow many\b|\bcalculate|\bsolve\b|\bequation|\bprobabilit|\bpuzzle|\bderive\b"
        r"|\bhow much\b|\bwork out\b|\bif .* then\b.*\?|=\s*\?|\bplan\b",
    ),
    (
        "rewrite",
        r"\brewrite|\bparaphras|\bfix the grammar|\bproofread|\bmake (this|it)\b.*\b(polite|formal|short)"
        r"|\bcorrect the",
    ),
    (
        "knowledge",
        r"\bwho\b|\bwhen (did|was|is)\b|\boverview\b|\bexplain (the|how|why)\b|\bquestion:|\bhistory of\b",
    ),
)
LIST_AFTER = re.compile(
    r"(?:as|one of|into|between|categor(?:y|ies|ías?)|labels?|classes|options|intents?|either)"
    r"(?: exactly)?(?: one of)?(?: the| these| this| following| estas| categorías?| categories| labels?| classes|"
    r" options| intents?)*\s*(?:are|is)?\s*[:\-(]?\s*([^\n.?!)]{3,600})",
    re.IGNORECASE,
)
BULLET = re.compile(r"^[ \t]*(?:[-*•]|\d+[.)]|\(?[a-zA-Z][.)])[ \t]+(.{1,60}?)(?:[ \t]*[:–—-][ \t].*)?$", re.MULTILINE)
SPLIT = re.compile(r"\s*(?:,|;|/|\||\bor\b|\band\b|\bo\b|\bou\b|\boder\b|\by\b)\s*", re.IGNORECASE)
MARKUP = re.compile(r"</?(?:text|document|context|article|code|passage|input|ticket|message)\w*>", re.IGNORECASE)
READ_CHARS = 20_000  # of a very long turn, this much of either end is looked at
EASY = frozenset({"classification", "extraction", "translation", "summarization", "simple_qa", "rewrite", "chat"})


@dataclass(frozen=True, slots=True)
class Task:
    """The kind of work, the instruction with its labels, and the text it is to be done on."""

    kind: str
    instruction: str
    material: str
    labels: tuple[str, ...] = ()

    @property
    def is_easy(self) -> bool:
        """Structured work that a model does without much thought."""
        return self.kind in EASY


def block_text(content: Any) -> str:
    """The plain text of a message's content, texts of tool results included."""
    if isinstance(content, str):
        return content
    texts = []
    for block in content or []:
        kind = block["type"]
        if kind == "text":
            texts.append(block["text"])
        elif kind in ("tool_result", "search_result"):
            texts.append(block_text(block.get("content")))
        elif kind == "document" and block["source"]["type"] == "text":
            texts.append(str(block["source"]["data"]))
    return "\n".join(texts)


def system_text(body: Mapping[str, Any]) -> str:
    """The system prompt as plain text."""
    system = body.get("system") or ""
    return system if isinstance(system, str) else "\n".join(block["text"] for block in system)


def last_user_text(body: Mapping[str, Any]) -> str:
    """The words of the last user turn."""
    for message in reversed(body["messages"]):
        if message["role"] == "user":
            text = block_text(message["content"])
            if text:
                return text
    return ""


def last_user_words(body: Mapping[str, Any]) -> str:
    """The last text block of the last user turn: what was typed, without the reminders that clients put before it."""
    for message in reversed(body["messages"]):
        if message["role"] == "user":
            content = message["content"]
            blocks = content if isinstance(content, list) else []
            texts = [block["text"] for block in blocks if block["type"] == "text"]
            return texts[-1] if texts else block_text(content)
    return ""


def read_task(body: Mapping[str, Any]) -> Task:
    """Guess the task of a request from its last user turn and its system prompt."""
    user, system = last_user_text(body), system_text(body)
    if len(user) > 2 * READ_CHARS:
        user = f"{user[:READ_CHARS]}\n\n{user[-READ_CHARS:]}"
    instruction, material = _split(user)
    # A long system prompt (an agent's) talks of everything; a short one states the job.
    brief = system if len(system) < 1_500 else ""
    asked = f"{brief}\n{instruction}".strip()
    lowered = asked.lower()
    kind = next((name for name, sign in SIGNS if re.search(sign, lowered, re.DOTALL)), "")
    has_text = len(material) > 300
    if not kind or (kind == "knowledge" and has_text):
        kind = "simple_qa" if has_text else "knowledge" if "?" in instruction else "chat"
    labels = tuple(read_labels(asked)) if kind == "classification" else ()
    return Task(kind, asked, material or instruction, labels)


def _split(text: str) -> tuple[str, str]:
    """The instruction (the short pieces at either end) and the material between them."""
    clean = MARKUP.sub("\n\n", text).strip()
    pieces = [piece.strip() for piece in re.split(r"\n\s*\n", clean) if piece.strip()]
    if len(pieces) <= 1:
        head, colon, tail = clean.partition(":")
        if colon and len(head) < 200 and len(tail.strip()) > 10:
            labels_end = tail.find(".\n")
            if labels_end > 0:
                return head + colon + tail[: labels_end + 1], tail[labels_end + 1 :].strip()
            return (head + colon, tail.strip()) if "one of" not in head.lower() else (clean, clean)
        found = sentences(clean)
        return (found[0] if len(found) > 2 else clean), clean
    longest = max(range(len(pieces)), key=lambda index: (not _instructs(pieces[index]), len(pieces[index])))
    return "\n".join(piece for index, piece in enumerate(pieces) if index != longest)[:4_000], pieces[longest]


def _instructs(piece: str) -> bool:
    """Whether a piece tells what to do, however long it is: a list of labels, or a short request for known work."""
    if len(BULLET.findall(piece)) >= 3:
        return True
    return len(piece) < 400 and any(re.search(sign, piece.lower(), re.DOTALL) for _, sign in SIGNS[:4])


def read_labels(instruction: str) -> list[str]:
    """The labels that an instruction offers: bullets, or a list after words such as `as` or `one of`."""
    bullets = [_trim(item) for item in BULLET.findall(instruction)]
    bullets = [item for item in bullets if item]
    if len(bullets) >= 2:
        return bullets[:60]
    best: list[str] = []
    for match in LIST_AFTER.finditer(instruction):
        options = [_trim(item) for item in SPLIT.split(match[1])]
        options = [item for item in options if item and len(item.split()) <= 4]
        if len(options) >= 2 and len(options) > len(best):
            best = options
    return best[:200]


def _trim(label: str) -> str:
    return label.strip().strip("\"'`“”«»[]{}()*.,:;").strip()

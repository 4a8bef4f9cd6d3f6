"""Varied Messages requests from a seed: what programs really send, in many spellings."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MODELS = (
    "claude-haiku-5-5", "claude-sonnet-5-5", "claude-opus-5-5", "claude-sonnet-5", "claude-opus-5",
    "claude-haiku-4-5", "claude-sonnet-4-6",
)  # fmt: skip
_TEXTS = (
    "The parcel was sent on Monday but the shop says it never left the warehouse in Gdańsk.",
    "Größe und Gewicht stehen auf dem Etikett, nicht in der Rechnung.",
    "日本語のテキストも、そのまま届かなければならない。",
    'A "quoted" word, a back\\slash, a tab\there, an emoji 🛰️ and a null-ish \u0001 byte.',
    "def area(r):\n    return 3.14159 * r * r\n",
    "Revenue rose from 4.2 to 5.9 million, while costs stayed at 3.1 million.",
)
_TASKS = (
    "Classify the following as complaint, praise or question:\n{}",
    "Summarize in one sentence:\n{}",
    "Translate into English:\n{}",
    "Extract every number from this text as a list:\n{}",
    "Prove or refute, step by step, what this says about the general case:\n{}",
    "Fix the bugs in this and explain each one:\n{}",
    "Rewrite more politely:\n{}",
)
_TOOL = {
    "name": "look_up",
    "description": "Look a thing up; `model` is the kind of thing",
    "input_schema": {
        "type": "object",
        "properties": {"model": {"type": "string"}, "depth": {"type": "integer"}},
        "required": ["model"],
        "additionalProperties": False,
    },
}
_FORMAT = {
    "type": "json_schema",
    "schema": {
        "type": "object",
        "properties": {"label": {"type": "string", "enum": ["a", "b"]}, "model": {"type": "string"}},
        "required": ["label", "model"],
        "additionalProperties": False,
    },
}


def bodies(seed: int, count: int) -> Iterator[dict[str, Any]]:
    """`count` request bodies that the API takes as they are; no two are the same."""
    dice = random.Random(seed)
    for number in range(count):
        yield body_of(dice, number)


def labelled(path: Path) -> Iterator[dict[str, Any]]:
    """The request bodies of a file of labelled requests (JSONL, gzipped or not)."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    for line in data.splitlines():
        yield json.loads(line)["request"]


def spelled(body: dict[str, Any], dice: random.Random) -> bytes:
    """The body as JSON in one of the ways in which client libraries write it."""
    way = dice.randrange(4)
    if way == 0:
        return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()
    if way == 1:
        return json.dumps(body).encode()
    if way == 2:
        return json.dumps(body, indent=2, ensure_ascii=False).encode()
    shuffled = list(body.items())
    dice.shuffle(shuffled)
    return json.dumps(dict(shuffled), separators=(",", ":")).encode()


def body_of(dice: random.Random, number: int, *, model: str | None = None) -> dict[str, Any]:
    """The body of request `number`, for a model or for any."""
    model = dice.choice(MODELS) if model is None else model
    text = f"{dice.choice(_TASKS).format(dice.choice(_TEXTS) * dice.randint(1, 12))}\n(No. {number})"
    content: Any = text
    if dice.random() < 0.3:
        content = [{"type": "text", "text": dice.choice(_TEXTS)}, {"type": "text", "text": text}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if dice.random() < 0.25:
        messages = [
            {"role": "user", "content": dice.choice(_TEXTS)},
            {"role": "assistant", "content": "Understood. What shall I do with it?"},
            *messages,
        ]
    body: dict[str, Any] = {"model": model, "max_tokens": dice.choice((64, 500, 2000, 4096)), "messages": messages}
    if dice.random() < 0.4:
        body["system"] = "You are a careful assistant of a small shop."
    elif dice.random() < 0.3:
        rules = " ".join(f"Rule {n}: {dice.choice(_TEXTS)}" for n in range(dice.choice((5, 150))))
        marker = dice.choice(({"type": "ephemeral"}, {"type": "ephemeral", "ttl": "1h"}))
        body["system"] = [{"type": "text", "text": rules, "cache_control": marker}]
    if dice.random() < 0.2:
        body["tools"] = [_TOOL]
    elif dice.random() < 0.15:
        body["output_config"] = {"format": _FORMAT}
    if dice.random() < 0.2:
        body["metadata"] = {"user_id": f"user-{dice.randrange(20)}"}
    if dice.random() < 0.2:
        body["stop_sequences"] = ["###"]
    return body

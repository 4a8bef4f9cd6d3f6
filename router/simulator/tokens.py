"""How many tokens a request takes: a deterministic estimate by the model's tokenizer family.

About 3.6 characters of plain text to a token with the 2024 tokenizer, 30% more tokens with the 2026 one; images by
the documented formula; the hidden prompt of tool use by the documented figures. Counted in thousandths of a token so
that the counts of parts add up to the count of the whole.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from router.simulator.record import ModelRecord
from router.simulator.shape import turns

PER_TOKEN_CHARS = 3.6
PER_MESSAGE_MILLI = 4_000  # role markers around one turn
PER_TOOL_MILLI = 12_000
TOOL_OVERHEAD = {"auto_none": 300, "any_tool": 420}  # where no figure is documented
IMAGE_PATCH_PX = 28
UNKNOWN_IMAGE_SIDE_PX = 1024
PDF_PAGE_MILLI = 1_800_000
TYPED_TOOL_TOKENS = {"text_editor": 700, "computer_toolset": 4_500, "browser_toolset": 6_600, "computer_2": 1_000}


@dataclass(frozen=True, slots=True)
class Part:
    """One renderable piece of a prompt. `layer` is tools, system or messages; `value` decides cache identity."""

    layer: str
    value: str
    milli: int  # thousandths of a token
    marker: Mapping[str, Any] | None = None  # its `cache_control`
    can_be_marked: bool = True
    joins_previous: bool = False  # one look-back position with the part before it


def text_milli(text: str, model: ModelRecord) -> int:
    """Thousandths of a token of a text."""
    wide = len(text.encode("utf-8", "replace")) - len(text)  # extra bytes of letters beyond ASCII
    return math.ceil((len(text) + 0.6 * wide) / PER_TOKEN_CHARS * 1000 * model.tokenizer_factor)


def text_tokens(text: str, model: ModelRecord) -> int:
    """Tokens of a text standing alone."""
    return math.ceil(text_milli(text, model) / 1000)


def image_tokens(width: int, height: int, model: ModelRecord) -> int:
    """Visual tokens of an image after downscaling to the model's tier.

    Source: vision documentation, ceil(w/28) x ceil(h/28) within the long-edge and token limits.
    """
    limits = model.fields["image_limits"]
    scale = min(1.0, limits["max_long_edge_px"] / max(width, height, 1))
    tokens = _patches(width * scale, height * scale)
    while tokens > limits["max_visual_tokens"]:
        scale *= 0.98
        tokens = _patches(width * scale, height * scale)
    return tokens


def _patches(width: float, height: float) -> int:
    return max(1, math.ceil(width / IMAGE_PATCH_PX)) * max(1, math.ceil(height / IMAGE_PATCH_PX))


def image_size(source: Mapping[str, Any]) -> tuple[int, int]:
    """Width and height in pixels from the header of a base64 PNG; a middling square for anything else."""
    if source.get("type") == "base64" and isinstance(source.get("data"), str):
        try:
            head = base64.b64decode(source["data"][:64])
        except (binascii.Error, ValueError):
            head = b""
        if head.startswith(b"\x89PNG\r\n\x1a\n") and len(head) >= 24:
            width, height = struct.unpack(">II", head[16:24])
            return int(width), int(height)
    return UNKNOWN_IMAGE_SIDE_PX, UNKNOWN_IMAGE_SIDE_PX


def block_milli(block: Mapping[str, Any], model: ModelRecord) -> int:
    """Thousandths of a token of one content block."""
    kind = block["type"]
    if kind == "text":
        return text_milli(block["text"], model)
    if kind == "image":
        return image_tokens(*image_size(block["source"]), model) * 1000
    if kind == "document":
        return _document_milli(block["source"], model)
    if kind == "thinking":
        # The signature carries the thinking itself when it is shown as omitted, so it is what counts.
        return text_milli(block["thinking"], model) or text_milli(block["signature"], model) // 2
    if kind == "tool_result":
        content = block.get("content") or ""
        if isinstance(content, str):
            return text_milli(content, model) + PER_TOOL_MILLI
        return sum(block_milli(item, model) for item in content) + PER_TOOL_MILLI
    if kind == "tool_use":
        return text_milli(block["name"] + json.dumps(block["input"]), model) + PER_TOOL_MILLI
    if kind == "fallback":
        return 0  # a mark, not rendered into the prompt
    plain = {name: value for name, value in block.items() if name != "cache_control"}
    return text_milli(json.dumps(plain), model)


def _document_milli(source: Mapping[str, Any], model: ModelRecord) -> int:
    data = source.get("data")
    if source["type"] == "text" and isinstance(data, str):
        return text_milli(data, model)
    if source["type"] == "content":
        return text_milli(json.dumps(source["content"]), model)
    size = len(data) if isinstance(data, str) else 0
    return max(1, size // 60_000) * PDF_PAGE_MILLI


def prompt_parts(body: Mapping[str, Any], model: ModelRecord) -> list[Part]:
    """The prompt in render order: tools, system, messages."""
    return [*_tool_parts(body, model), *_system_parts(body, model), *_message_parts(body, model)]


def _tool_parts(body: Mapping[str, Any], model: ModelRecord) -> list[Part]:
    tools = body.get("tools") or []
    if not tools:
        return []
    figures = model.fields["tool_use_prompt_tokens"] or TOOL_OVERHEAD
    is_forced = (body.get("tool_choice") or {}).get("type") in ("any", "tool")
    overhead = figures["any_tool" if is_forced else "auto_none"] * 1000
    parts = [Part("tools", "tool use", overhead, can_be_marked=False)]
    for tool in tools:
        plain = {name: value for name, value in tool.items() if name != "cache_control"}
        text = json.dumps(plain)
        milli = 0 if tool.get("defer_loading") else text_milli(text, model) + PER_TOOL_MILLI
        milli += _typed_tool_tokens(str(tool.get("type") or ""), model) * 1000
        parts.append(Part("tools", text, milli, tool.get("cache_control")))
    return parts


def _typed_tool_tokens(kind: str, model: ModelRecord) -> int:
    if kind.startswith("bash_"):
        return 325 if model.tokenizer_factor > 1 else 244
    return next((tokens for start, tokens in TYPED_TOOL_TOKENS.items() if kind.startswith(start)), 0)


def _system_parts(body: Mapping[str, Any], model: ModelRecord) -> list[Part]:
    system = body.get("system") or []
    if isinstance(system, str):
        system = [{"type": "text", "text": system}]
    return [
        Part("system", block["text"], text_milli(block["text"], model), block.get("cache_control")) for block in system
    ]


def _message_parts(body: Mapping[str, Any], model: ModelRecord) -> list[Part]:
    parts: list[Part] = []
    for message in body["messages"]:
        role, content = message["role"], message.get("content") or []
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        lead, before = PER_MESSAGE_MILLI, ""
        for block in content:
            kind = block["type"]
            plain = {name: value for name, value in block.items() if name != "cache_control"}
            is_run = kind == before and kind in ("tool_use", "tool_result")
            parts.append(
                Part(
                    "messages",
                    role + json.dumps(plain),
                    block_milli(block, model) + lead,
                    _marker(block),
                    can_be_marked=kind not in ("thinking", "redacted_thinking"),
                    joins_previous=is_run,
                )
            )
            lead, before = 0, kind
    return parts


def _marker(block: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The marker of a block, or of the last marked block inside a tool result."""
    found: Mapping[str, Any] | None = block.get("cache_control")
    nested = block.get("content")
    for item in nested if isinstance(nested, list) else []:
        if isinstance(item, dict) and item.get("cache_control"):
            found = item["cache_control"]
    return found


def prompt_tokens(parts: list[Part]) -> int:
    """Tokens of a whole prompt."""
    return math.ceil(sum(part.milli for part in parts) / 1000) + 3


def without_old_thinking(body: dict[str, Any], model: ModelRecord) -> dict[str, Any]:
    """The body as an older model sees it: thinking of turns before the last user words is stripped.

    Source: context windows documentation; later models keep it, and bill it as input.
    """
    if model.fields["keeps_prior_turn_thinking"]:
        return body
    last_words = -1
    for role, first, blocks in turns(body["messages"]):
        if role == "user" and not any(block["type"] == "tool_result" for _, block in blocks):
            last_words = first
    messages = []
    for index, message in enumerate(body["messages"]):
        content = message.get("content")
        if index < last_words and message["role"] == "assistant" and isinstance(content, list):
            kept = [block for block in content if block["type"] not in ("thinking", "redacted_thinking")]
            message = {**message, "content": kept}
        messages.append(message)
    return {**body, "messages": messages}

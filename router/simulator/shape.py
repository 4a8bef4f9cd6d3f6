"""The body of a Messages request as a shape: fields, types, turns and the pairing of tool calls with results.

What depends on the model is in `accepts`; here is what every model refuses alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from router.simulator import betas as b
from router.simulator.blocks import check_block, check_cache_control, check_tools
from router.simulator.refusal import Refusal, extra_input, missing

_GENERAL_FIELD_NAMES = """
model max_tokens messages system tools tool_choice thinking output_config cache_control container diagnostics
inference_geo metadata service_tier speed stop_sequences stream temperature top_p top_k
"""
GENERAL_FIELDS = frozenset(_GENERAL_FIELD_NAMES.split())
NOT_FOR_COUNTING = frozenset({"max_tokens", "stream", "stop_sequences", "metadata", "service_tier"})
SAMPLING = ("temperature", "top_p", "top_k")
MAX_MESSAGES = 100_000
MAX_BREAKPOINTS = 4


def check_shape(body: Mapping[str, Any], betas: frozenset[str], version: str, *, is_count: bool = False) -> None:
    """Raise `Refusal` for the first thing in the body that no model would take."""
    for name in ("model", "messages") if is_count else ("model", "messages", "max_tokens"):
        if name not in body:
            raise missing(name)
    for name in body:
        needed = b.TOP_LEVEL_BETAS.get(name)
        is_known = b.has_any(betas, needed) if needed else name in GENERAL_FIELDS
        if not is_known or (is_count and name in NOT_FOR_COUNTING):
            raise extra_input(name)
    if version == b.NEW_VERSION:
        for name in SAMPLING:
            if body.get(name) is not None:
                raise extra_input(name)
    _check_scalars(body, is_count=is_count)
    _check_system(body.get("system"), betas, version)
    if body.get("tools") is not None:
        check_tools(body["tools"], betas)
    _check_tool_choice(body)
    _check_messages(body["messages"], betas, version)
    check_cache_control(body.get("cache_control"), "body")
    _check_breakpoints(body)


def _check_scalars(body: Mapping[str, Any], *, is_count: bool) -> None:
    if not isinstance(body["model"], str):
        raise Refusal("model: Input should be a valid string")
    if not body["model"]:
        raise Refusal("model: String should have at least 1 character")
    if not is_count:
        _check_integer(body["max_tokens"], "max_tokens", 0)
    if body.get("stream") is not None and not isinstance(body["stream"], bool):
        raise Refusal("stream: Input should be a valid boolean")
    for name, top in (("temperature", 1), ("top_p", 1)):
        value = body.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise Refusal(f"{name}: Input should be a valid number")
        if not 0 <= value <= top:
            raise Refusal(f"{name}: range: 0..1")
    if body.get("top_k") is not None:
        _check_integer(body["top_k"], "top_k", 0)
    metadata = body.get("metadata")
    if metadata is not None:
        if not isinstance(metadata, dict):
            raise Refusal("metadata: Input should be a valid dictionary")
        for name in metadata:
            if name != "user_id":
                raise extra_input(f"metadata.{name}")
    if body.get("service_tier", "auto") not in ("auto", "standard_only"):
        raise Refusal("service_tier: Input should be 'auto' or 'standard_only'")
    if (body.get("speed") or "standard") not in ("standard", "fast"):
        raise Refusal("speed: Input should be 'standard' or 'fast'")
    sequences = body.get("stop_sequences")
    if sequences is not None:
        if not isinstance(sequences, list) or not all(isinstance(item, str) for item in sequences):
            raise Refusal("stop_sequences: Input should be a valid list")
        if any(not item.strip() for item in sequences):
            raise Refusal("stop_sequences: each stop sequence must contain non-whitespace")


def _check_integer(value: Any, path: str, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise Refusal(f"{path}: Input should be a valid integer")
    if value < least:
        raise Refusal(f"{path}: Input should be greater than or equal to {least}")


def _check_system(system: Any, betas: frozenset[str], version: str) -> None:
    if system is None or isinstance(system, str):
        return
    if not isinstance(system, list):
        raise Refusal("system: Input should be a valid list")
    for index, block in enumerate(system):
        if not isinstance(block, dict) or block.get("type") != "text":
            raise Refusal(f"system.{index}.type: Input should be 'text'")
        check_block(block, f"system.{index}", "system", betas, version)


def _check_tool_choice(body: Mapping[str, Any]) -> None:
    choice = body.get("tool_choice")
    if choice is None:
        return
    kind = choice.get("type") if isinstance(choice, dict) else None
    fields = {"auto": (), "any": (), "none": (), "tool": ("name",)}.get(kind) if isinstance(kind, str) else None
    if fields is None:
        raise Refusal(
            f"tool_choice: Input tag '{kind}' found using 'type' does not match any of the expected tags: "
            "'auto', 'any', 'tool', 'none'"
        )
    for name in fields:
        if name not in choice:
            raise missing(f"tool_choice.{kind}.{name}")
    for name in choice:
        if name not in ("type", *fields) and not (name == "disable_parallel_tool_use" and kind != "none"):
            raise extra_input(f"tool_choice.{kind}.{name}")
    if not body.get("tools"):
        raise Refusal("tool_choice: `tool_choice` may only be specified while providing `tools`.")
    if kind == "tool" and choice["name"] not in [tool.get("name") for tool in body["tools"]]:
        raise Refusal(f"Tool '{choice['name']}' not found in provided tools")


def _check_messages(messages: Any, betas: frozenset[str], version: str) -> None:
    if not isinstance(messages, list):
        raise Refusal("messages: Input should be a valid list")
    if not messages:
        raise Refusal("messages: at least one message is required")
    if len(messages) > MAX_MESSAGES:
        raise Refusal(f"messages: at most {MAX_MESSAGES} messages are allowed")
    for index, message in enumerate(messages):
        path = f"messages.{index}"
        if not isinstance(message, dict):
            raise Refusal(f"{path}: Input should be a valid dictionary or object to extract fields from")
        for name in ("role", "content"):
            if name not in message and not (name == "content" and message.get("role") == "system"):
                raise missing(f"{path}.{name}")
        role = message["role"]
        if role not in ("user", "assistant", "system"):
            raise Refusal(f'messages: Unexpected role "{role}". Allowed roles are "user", "assistant" or "system".')
        _check_message_fields(message, path, betas)
        content = message.get("content")
        if not content and not (role == "system" or (role == "assistant" and index == len(messages) - 1)):
            raise Refusal(
                f"{path}: all messages must have non-empty content except for the optional final assistant message"
            )
        if isinstance(content, list):
            for position, block in enumerate(content):
                check_block(block, f"{path}.content.{position}", role, betas, version)
        elif content is not None and not isinstance(content, str):
            raise Refusal(f"{path}.content: Input should be a valid list")
    _check_pairing(messages)


def _check_message_fields(message: Mapping[str, Any], path: str, betas: frozenset[str]) -> None:
    is_system = message["role"] == "system"
    for name in message:
        if name in ("role", "content"):
            continue
        needed = {"output_config": b.PER_MESSAGE, "clear_at": b.CLEAR_AT}.get(name)
        if not is_system or needed is None or not b.has_any(betas, needed):
            raise extra_input(f"{path}.{name}")
    config = message.get("output_config")
    if config is not None:
        if not isinstance(config, dict):
            raise Refusal(f"{path}.output_config: Input should be a valid dictionary")
        for name in config:
            if name != "effort":
                raise extra_input(f"{path}.output_config.{name}")


def turns(messages: list[dict[str, Any]]) -> list[tuple[str, int, list[tuple[int, dict[str, Any]]]]]:
    """The messages as merged turns: (role, index of the first message, [(message index, block), ...]).

    System messages are left out: they do not end a turn. Consecutive turns of one role count as one.
    """
    merged: list[tuple[str, int, list[tuple[int, dict[str, Any]]]]] = []
    for index, message in enumerate(messages):
        role, content = message["role"], message.get("content") or []
        if role == "system":
            continue
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        if not merged or merged[-1][0] != role:
            merged.append((role, index, []))
        merged[-1][2].extend((index, block) for block in content)
    return merged


def _check_pairing(messages: list[dict[str, Any]]) -> None:
    """Every `tool_use` has its `tool_result` in the next turn, and every result a call in the turn before."""
    pending: list[str] = []
    seen: set[str] = set()
    asked_at = 0
    for role, first, blocks in turns(messages):
        if role == "user":
            answered = [block["tool_use_id"] for _, block in blocks if block["type"] == "tool_result"]
            for position, (index, block) in enumerate(blocks):
                if block["type"] == "tool_result" and block["tool_use_id"] not in pending:
                    raise Refusal(
                        f"messages.{index}.content.{position}: unexpected `tool_use_id` found in `tool_result` blocks: "
                        f"{block['tool_use_id']}. Each `tool_result` block must have a corresponding `tool_use` block "
                        "in the previous message."
                    )
            if len(answered) != len(set(answered)):
                twice = next(item for item in answered if answered.count(item) > 1)
                raise Refusal(f"messages.{first}: each `tool_use` must have a single result. Found several for {twice}")
            _refuse_unanswered([item for item in pending if item not in answered], asked_at)
            pending = []
        else:
            _refuse_unanswered(pending, asked_at)
            pending, asked_at = [], first
            for _, block in blocks:
                if block["type"] == "tool_use":
                    if block["id"] in seen:
                        raise Refusal("messages: `tool_use` ids must be unique")
                    seen.add(block["id"])
                    pending.append(block["id"])
    _refuse_unanswered(pending, asked_at)


def _refuse_unanswered(unanswered: list[str], index: int) -> None:
    if unanswered:
        raise Refusal(
            f"messages.{index}: `tool_use` ids were found without `tool_result` blocks immediately after: "
            f"{', '.join(unanswered)}. Each `tool_use` block must have a corresponding `tool_result` block in the "
            "next message."
        )


def markers(body: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Every `cache_control` of the body in render order: tools, system, messages, then the automatic one."""
    for tool in body.get("tools") or []:
        if tool.get("cache_control"):
            yield tool["cache_control"]
    system = body.get("system")
    for block in system if isinstance(system, list) else []:
        if block.get("cache_control"):
            yield block["cache_control"]
    for message in body["messages"]:
        content = message.get("content")
        for block in content if isinstance(content, list) else []:
            if block.get("cache_control"):
                yield block["cache_control"]
            nested = block.get("content")
            for item in nested if isinstance(nested, list) else []:
                if isinstance(item, dict) and item.get("cache_control"):
                    yield item["cache_control"]
    if body.get("cache_control"):
        yield body["cache_control"]


def _check_breakpoints(body: Mapping[str, Any]) -> None:
    found = list(markers(body))
    if len(found) > MAX_BREAKPOINTS:
        raise Refusal(f"A maximum of {MAX_BREAKPOINTS} blocks with cache_control may be provided. Found {len(found)}.")
    has_short = False
    for marker in found:
        is_short = marker.get("ttl", "5m") == "5m"
        if has_short and not is_short:
            raise Refusal(
                "cache_control: a ttl='1h' block must not come after a ttl='5m' block in `tools`, `system`, `messages`"
            )
        has_short = has_short or is_short

"""The rules of a swap for the conversation: roles, prefill, block types, images, per-message fields.

One bounded pass that looks at types, never at text. The same strictness as `swap.rules`: a block type that nobody
knows is a reason.
Source: Anthropic fact sheet, sections 1, 3, 4 and 18.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from router.catalog.records import Model
from router.swap.rules import Case, shown

_MAX_BLOCKS = 50_000  # a longer conversation is not checked but refused: the check runs on the request path
_MAX_PRODUCERS = 16
_PLAIN_BLOCKS = frozenset(
    {
        *("text", "image", "document", "search_result", "tool_use", "tool_result"),
        *("server_tool_use", "web_search_tool_result", "web_fetch_tool_result"),
        *("mcp_tool_use", "mcp_tool_result"),
    }
)
_TOOL_CHANGES = frozenset({"tool_addition", "tool_removal"})
_TOOL_SEARCH = frozenset({"tool_search_tool_result", "tool_reference"})
_THINKING_BLOCKS = frozenset({"thinking", "redacted_thinking"})


def conversation(case: Case) -> Iterator[str]:
    """Reasons in the conversation: roles, prefill, block types, images. One pass, bounded."""
    target, accepts = case.target, case.target.accepts
    turns = case.body["messages"]
    kinds: set[str] = set()
    roles: set[Any] = set()
    images, blocks = 0, len(turns)
    speaker = ""  # of the last message that is not a system message
    if blocks > _MAX_BLOCKS:
        yield f"more than {_MAX_BLOCKS} messages are not checked"
        return
    for turn in turns:
        role = turn.get("role")
        roles.add(role)
        if role != "system":
            speaker = role
        if len(turn) > 2:
            reason = _message_fields(turn, case)
            if reason is not None:
                yield reason
        content = turn.get("content")
        if not isinstance(content, list):
            continue
        blocks += len(content)
        if blocks > _MAX_BLOCKS:
            yield f"more than {_MAX_BLOCKS} content blocks are not checked"
            return
        for block in content:
            kind = block.get("type") if isinstance(block, dict) else None
            if kind == "text":
                continue
            kinds.add(kind if isinstance(kind, str) else "")
            if kind == "image":
                images += 1
            elif kind == "tool_result" and isinstance(block.get("content"), list):
                inner = block["content"]
                blocks += len(inner)
                if blocks > _MAX_BLOCKS:
                    yield f"more than {_MAX_BLOCKS} content blocks are not checked"
                    return
                for part in inner:
                    inside = part.get("type") if isinstance(part, dict) else None
                    kinds.add(inside if isinstance(inside, str) else "")
                    images += inside == "image"
    if "system" in roles and accepts.mid_conversation_system is not True:
        yield "`role` `system` inside `messages` is not taken"
    if roles - {"user", "assistant", "system"}:
        yield "a `role` in `messages` is not known"
    if speaker == "assistant" and (accepts.assistant_prefill is not True or case.thinks):
        yield "the last message is the assistant's: prefill is not taken"
    limit = target.accepts.max_images
    if images and (limit is None or images > limit):
        yield f"{images} images, the limit is {limit}"
    if "document" in kinds and "pdf_input" in accepts.denied:
        yield "documents are not taken"
    if "document" in kinds and case.asked is not None and (limit or 0) < (case.asked.accepts.max_images or 0):
        yield "documents may have more pages than this model takes"
    if kinds - _PLAIN_BLOCKS:
        yield from _rare_blocks(kinds - _PLAIN_BLOCKS, case)
    if "server_tool_use" in kinds and _has_pending_server_tool(turns):
        yield "a server tool is still pending"


def _rare_blocks(kinds: set[str], case: Case) -> Iterator[str]:
    if kinds & _THINKING_BLOCKS:
        yield from _thinking_history(case)
    if kinds & _TOOL_CHANGES and case.target.accepts.mid_conversation_tool_changes is not True:
        yield "tool changes inside the conversation are not taken"
    if kinds & _TOOL_SEARCH and case.target.accepts.programmatic_tool_calling is not True:
        yield "tool search may not be taken"
    for kind in sorted(kinds - _THINKING_BLOCKS - _TOOL_CHANGES - _TOOL_SEARCH)[:8]:
        yield f"content block `{shown(kind)}` may be bound to the model asked for"


def _thinking_history(case: Case) -> Iterator[str]:
    """Reasons in who thought: the target must read all of it, and must not verify more than the model asked for would.

    A block that the target may not read is dropped without an error: silently lost reasoning, the worst in a pending
    tool loop. The bytes do not say who thought, and a client may replay the blocks of any model that answered.
    """
    target, asked, producers = case.target, case.asked, case.producers
    if not producers:
        yield "the conversation carries thinking blocks, which are bound to a model"
        return
    for name in producers[:_MAX_PRODUCERS]:
        if not _reads(target, name):
            yield f"the thinking blocks of `{shown(name)}` are not read here"
    if len(producers) > _MAX_PRODUCERS:
        yield f"more than {_MAX_PRODUCERS} models in the conversation are not checked"
    # A client may have changed the history. Where the model asked for would verify it just as the target does, the
    # request fails either way; where it would not, only a model that is in the conversation anyhow goes on.
    if asked is None or target.prefix_check == "none" or any(_is(target, name) for name in producers):
        return
    does_asked_verify = asked.prefix_check in ("all", target.prefix_check)
    if not does_asked_verify or not all(_reads(asked, name) for name in producers):
        yield "the history behind thinking blocks is verified here, and not by the model asked for"


def _is(model: Model, name: str) -> bool:
    return name == model.id or name in model.aliases


def _reads(model: Model, producer: str) -> bool:
    return _is(model, producer) or producer in model.accepts.reads_thinking_from


def is_in_tool_loop(turns: Sequence[Any]) -> bool:
    """Whether the last message that is not a system message answers a tool call."""
    for turn in reversed(turns):
        if turn.get("role") != "system":
            content = turn.get("content")
            blocks = content if isinstance(content, list) else []
            return any(isinstance(block, dict) and block.get("type") == "tool_result" for block in blocks)
    return False


def _message_fields(turn: Mapping[str, Any], case: Case) -> str | None:
    unknown = turn.keys() - {"role", "content", "output_config"}
    if unknown:
        return f"field `{shown(min(unknown))}` of a message may not be taken"
    config = turn.get("output_config")
    if config is None:
        return None
    if case.target.accepts.per_message_effort is not True or not case.thinks:
        return "`output_config` of a message is not taken"
    if not isinstance(config, dict) or config.keys() - {"effort"}:
        return "`output_config` of a message is not known"
    effort = config.get("effort")
    if effort is not None and (not isinstance(effort, str) or effort not in case.target.accepts.effort_levels):
        return f"effort `{shown(effort)}` of a message is not taken"
    return None


def _has_pending_server_tool(turns: list[Any]) -> bool:
    """Whether the latest assistant message called a server tool that has not answered there."""
    for turn in reversed(turns):
        if turn.get("role") != "assistant":
            continue
        content = turn.get("content")
        if not isinstance(content, list):
            return False
        types = [block.get("type") for block in content if isinstance(block, dict)]
        answered = sum(isinstance(kind, str) and kind.endswith("_tool_result") for kind in types)
        return types.count("server_tool_use") > answered
    return False

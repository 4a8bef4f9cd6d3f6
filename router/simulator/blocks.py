"""Content blocks and tools as the API takes them: which fields each type has, which it needs, who may send it.

Source: request block types of the official SDK 2.12 (general and beta).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from router.simulator import betas as b
from router.simulator.refusal import Refusal, extra_input, missing
from router.simulator.structured import check_schema

# type -> (fields beside `type` that are required, fields that are optional)
BLOCK_FIELDS: Mapping[str, tuple[str, str]] = {
    "text": ("text", "cache_control citations"),
    "image": ("source", "cache_control transformations"),
    "document": ("source", "cache_control citations context title"),
    "search_result": ("content source title", "cache_control citations"),
    "thinking": ("thinking signature", ""),
    "redacted_thinking": ("data", ""),
    "tool_use": ("id name input", "cache_control caller toolset_name"),
    "tool_result": ("tool_use_id", "content is_error cache_control toolset_name"),
    "server_tool_use": ("id name input", "cache_control caller"),
    "web_search_tool_result": ("tool_use_id content", "cache_control caller"),
    "web_fetch_tool_result": ("tool_use_id content", "cache_control caller"),
    "code_execution_tool_result": ("tool_use_id content", "cache_control"),
    "bash_code_execution_tool_result": ("tool_use_id content", "cache_control"),
    "text_editor_code_execution_tool_result": ("tool_use_id content", "cache_control"),
    "tool_search_tool_result": ("tool_use_id content", "cache_control"),
    "container_upload": ("file_id", "cache_control"),
    "tool_reference": ("tool_name", "cache_control"),
    "mcp_tool_use": ("id name input server_name", "cache_control"),
    "mcp_tool_result": ("tool_use_id", "content is_error cache_control"),
    "mcp_tool_listing": ("mcp_server_name tools", "cache_control"),
    "compaction": ("", "content encrypted_content signature tool_changes cache_control"),
    "fallback": ("from to", "trigger"),
    "tool_addition": ("tool", "cache_control"),
    "tool_removal": ("tool", "cache_control"),
    "advisor_tool_result": ("tool_use_id content", "cache_control"),
}
BLOCK_BETAS: Mapping[str, tuple[str, ...]] = {
    "tool_addition": b.TOOL_CHANGES,
    "tool_removal": b.TOOL_CHANGES,
    "mcp_tool_use": b.TOP_LEVEL_BETAS["mcp_servers"],
    "mcp_tool_result": b.TOP_LEVEL_BETAS["mcp_servers"],
    "mcp_tool_listing": b.TOP_LEVEL_BETAS["mcp_servers"],
    "compaction": (*b.COMPACT_EDIT, *b.TOP_LEVEL_BETAS["compaction"]),
    "fallback": b.TOP_LEVEL_BETAS["fallbacks"],
    "advisor_tool_result": b.TOOL_BETAS["advisor_20260301"],
}
USER_ONLY = frozenset({"image", "search_result", "tool_result", "container_upload"})
ASSISTANT_ONLY = frozenset(
    {"thinking", "redacted_thinking", "tool_use", "server_tool_use", "mcp_tool_use", "web_search_tool_result"}
)
SYSTEM_BLOCKS = frozenset({"text", "tool_addition", "tool_removal"})
SOURCE_FIELDS: Mapping[str, str] = {
    "base64": "media_type data",
    "url": "url",
    "file": "file_id",
    "text": "media_type data",
    "content": "content",
}
IMAGE_TYPES = ("image/jpeg", "image/png", "image/gif", "image/webp")
_TOOL_FIELD_NAMES = """
name description input_schema type cache_control strict defer_loading allowed_callers input_examples
eager_input_streaming
"""
TOOL_FIELDS = frozenset(_TOOL_FIELD_NAMES.split())
TYPED_TOOLS = re.compile(
    r"(bash|text_editor|computer|memory|web_search|web_fetch|code_execution|advisor)_20\d{6}"
    r"|tool_search_tool_(regex|bm25)(_20\d{6})?|(computer|browser)_toolset_20\d{6}|mcp_toolset"
)
TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
TOOL_ID = re.compile(r"[a-zA-Z0-9_-]+")


def check_cache_control(marker: Any, path: str) -> None:
    """Refuse a `cache_control` that is not `{"type": "ephemeral"}` with an optional `ttl` of 5m or 1h."""
    if marker is None:
        return
    if not isinstance(marker, dict) or marker.get("type") != "ephemeral":
        raise Refusal(f"{path}.cache_control.type: Input should be 'ephemeral'")
    for name in marker:
        if name not in ("type", "ttl"):
            raise extra_input(f"{path}.cache_control.ephemeral.{name}")
    if marker.get("ttl", "5m") not in ("5m", "1h"):
        raise Refusal(f"{path}.cache_control.ephemeral.ttl: Input should be '5m' or '1h'")


def check_block(block: Any, path: str, role: str, betas: frozenset[str], version: str) -> None:
    """Refuse one content block that the API would not parse; `path` names it in messages, `role` is its turn's."""
    if not isinstance(block, dict):
        raise Refusal(f"{path}: Input should be a valid dictionary or object to extract fields from")
    kind = block.get("type")
    if kind is None:
        raise missing(f"{path}.type")
    fields = BLOCK_FIELDS.get(kind) if isinstance(kind, str) else None
    if (
        fields is None
        or (kind in BLOCK_BETAS and not b.has_any(betas, BLOCK_BETAS[kind]))
        or (role == "system" and kind not in SYSTEM_BLOCKS)
    ):
        raise Refusal(f"{path}: Input tag '{kind}' found using 'type' does not match any of the expected tags")
    if (kind in USER_ONLY and role == "assistant") or (kind in ASSISTANT_ONLY and role == "user"):
        raise Refusal(f"{path}: `{kind}` blocks are not permitted in `{role}` messages")
    required, optional = fields[0].split(), fields[1].split()
    for name in required:
        if name not in block:
            raise missing(f"{path}.{kind}.{name}")
    for name in block:
        if name != "type" and name not in required and name not in optional:
            raise extra_input(f"{path}.{kind}.{name}")
    check_cache_control(block.get("cache_control"), f"{path}.{kind}")
    if kind == "text":
        _check_text(block, path, role, version)
    elif kind in ("image", "document"):
        _check_source(block, path, kind)
        if kind == "document" and role == "assistant" and version == b.NEW_VERSION:
            raise Refusal(f"{path}: `document` blocks are not permitted directly in `assistant` messages")
    elif kind in ("tool_use", "server_tool_use"):
        _check_tool_use(block, f"{path}.{kind}")
    elif kind in ("tool_result", "search_result"):
        if kind == "tool_result" and not isinstance(block["tool_use_id"], str):
            raise Refusal(f"{path}.tool_result.tool_use_id: Input should be a valid string")
        _check_nested(block, path, kind, betas, version)
    elif kind == "thinking" and not (isinstance(block["thinking"], str) and isinstance(block["signature"], str)):
        raise Refusal(f"{path}.thinking.signature: Input should be a valid string")


def _check_text(block: Mapping[str, Any], path: str, role: str, version: str) -> None:
    text = block["text"]
    if not isinstance(text, str):
        raise Refusal(f"{path}.text.text: Input should be a valid string")
    if not text and block.get("cache_control"):
        raise Refusal(f"{path}.text: cache_control cannot be set for empty text blocks")
    if not text:
        raise Refusal("messages: text content blocks must be non-empty")
    if role == "user" and block.get("citations") and version == b.NEW_VERSION:
        raise Refusal(f"{path}.text.citations: `citations` are not permitted in `user` messages")


def _check_source(block: Mapping[str, Any], path: str, kind: str) -> None:
    source = block["source"]
    tag = source.get("type") if isinstance(source, dict) else None
    allowed = ("base64", "url", "file") if kind == "image" else tuple(SOURCE_FIELDS)
    if not isinstance(tag, str) or tag not in allowed:
        raise Refusal(
            f"{path}.{kind}.source: Input tag '{tag}' found using 'type' does not match any of the expected tags"
        )
    for name in SOURCE_FIELDS[tag].split():
        if name not in source:
            raise missing(f"{path}.{kind}.source.{tag}.{name}")
    for name in source:
        if name != "type" and name not in SOURCE_FIELDS[tag].split():
            raise extra_input(f"{path}.{kind}.source.{tag}.{name}")
    if kind == "image" and tag == "base64" and source["media_type"] not in IMAGE_TYPES:
        expected = ", ".join(f"'{name}'" for name in IMAGE_TYPES[:-1])
        raise Refusal(
            f"{path}.image.source.base64.media_type: Input should be {expected} or '{IMAGE_TYPES[-1]}'",
        )


def _check_tool_use(block: Mapping[str, Any], path: str) -> None:
    if not isinstance(block["id"], str) or not TOOL_ID.fullmatch(block["id"]):
        raise Refusal(f"{path}.id: String should match pattern '^[a-zA-Z0-9_-]+$'")
    if not isinstance(block["name"], str) or not block["name"]:
        raise Refusal(f"{path}.name: String should have at least 1 character")
    if not isinstance(block["input"], dict):
        raise Refusal(f"{path}.input: Input should be a valid dictionary")


def _check_nested(block: Mapping[str, Any], path: str, kind: str, betas: frozenset[str], version: str) -> None:
    content = block.get("content")
    if content is None or (kind == "tool_result" and isinstance(content, str)):
        return
    if not isinstance(content, list):
        raise Refusal(f"{path}.{kind}.content: Input should be a valid list")
    allowed = ("text", "image", "document", "search_result", "tool_reference") if kind == "tool_result" else ("text",)
    for index, item in enumerate(content):
        where = f"{path}.{kind}.content.{index}"
        if isinstance(item, dict) and item.get("type") not in allowed:
            raise Refusal(
                f"{where}: Input tag '{item.get('type')}' found using 'type' does not match any of the expected tags"
            )
        check_block(item, where, "user", betas, version)


def check_tools(tools: Any, betas: frozenset[str]) -> None:
    """Refuse a `tools` list that the API would not parse: names, schemas, types and the betas of the types."""
    if not isinstance(tools, list):
        raise Refusal("tools: Input should be a valid list")
    names: set[str] = set()
    for index, tool in enumerate(tools):
        path = f"tools.{index}"
        if not isinstance(tool, dict):
            raise Refusal(f"{path}: Input should be a valid dictionary or object to extract fields from")
        kind = tool.get("type") or "custom"
        if kind == "custom":
            _check_custom_tool(tool, f"{path}.custom")
        elif (
            not isinstance(kind, str)
            or not TYPED_TOOLS.fullmatch(kind)
            or (kind in b.TOOL_BETAS and not b.has_any(betas, b.TOOL_BETAS[kind]))
        ):
            raise Refusal(f"{path}: Input tag '{kind}' found using 'type' does not match any of the expected tags")
        check_cache_control(tool.get("cache_control"), f"{path}.{kind}")
        name = tool.get("name")
        if isinstance(name, str):
            if name in names:
                raise Refusal("tools: Tool names must be unique.", details={"error_code": "tool_name_conflict"})
            names.add(name)


def _check_custom_tool(tool: Mapping[str, Any], path: str) -> None:
    for name in ("name", "input_schema"):
        if name not in tool:
            raise missing(f"{path}.{name}")
    for name in tool:
        if name not in TOOL_FIELDS:
            raise extra_input(f"{path}.{name}")
    if not isinstance(tool["name"], str) or not TOOL_NAME.fullmatch(tool["name"]):
        raise Refusal(f"{path}.name: String should match pattern '^[a-zA-Z0-9_-]{{1,128}}$'")
    schema = tool["input_schema"]
    if not isinstance(schema, dict):
        raise Refusal(f"{path}.input_schema: Input should be a valid dictionary")
    if "type" not in schema:
        raise missing(f"{path}.input_schema.type")
    if schema["type"] != "object":
        raise Refusal(f"{path}.input_schema.type: Input should be 'object'")
    check_schema(schema, f"{path}.input_schema")

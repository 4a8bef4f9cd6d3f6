"""Thinking blocks that come back: three checks on every one of them.

A signature made here names the model, the organization, the message it came from and the conversation before it, and
is sealed with a keyed hash, so a block that was edited or made up is told from one that was not.
  integrity  a broken seal is a 400, always.
  model      a block that the receiving model, or this organization, may not read is dropped without a word or a bill.
  history    on models that run it, a block whose conversation changed is a 400 (dropped when the request says so).
Source: documentation of preserved thinking.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any

from router.simulator import betas as b
from router.simulator.call import Call
from router.simulator.record import Roster
from router.simulator.refusal import Refusal

SEAL_KEY = b"router simulator thinking seal"
LATEST_MODIFIED = (
    "{path}: `thinking` or `redacted_thinking` blocks in the latest assistant message cannot be modified. "
    "These blocks must remain as they were in the original response."
)
WRONG_HISTORY = (
    "{path}: Invalid `signature` in `thinking` block. The block is bound to a different conversation. Remove the "
    'block, or set `thinking.block_binding.prefix_mismatch_behavior` to "drop_block".'
)
NEEDS_BETA = " That setting needs the `anthropic-beta: " + b.BINDING + "` header."


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a thinking block comes from, as its signature says."""

    model: str
    organization: str
    message: str
    ordinal: int
    prefix: str  # hash of the conversation before the block
    thinking: str  # what was thought; the block itself may show a summary or nothing
    shown: str  # hash of the text of the block


def digest(value: Any) -> str:
    """A short hash of plain data that does not depend on key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def sign(origin: Origin) -> str:
    """The signature of a thinking block."""
    payload = json.dumps(list(astuple(origin))).encode()
    seal = hmac.new(SEAL_KEY, payload, hashlib.blake2s).digest()[:16]
    return base64.b64encode(seal + payload).decode()


def unsign(signature: str) -> Origin | None:
    """What a signature says, or None when nobody here made it."""
    try:
        raw = base64.b64decode(signature, validate=True)
    except (binascii.Error, ValueError):
        return None
    seal, payload = raw[:16], raw[16:]
    if not hmac.compare_digest(seal, hmac.new(SEAL_KEY, payload, hashlib.blake2s).digest()[:16]):
        return None
    return Origin(*json.loads(payload))


class History:
    """The conversation as the history check sees it: a running hash over system, tools and every block so far.

    Not part of it: cache markers, key order, the order of tools, string content against one text block, whitespace
    around a text, thinking blocks, and every parameter beside `system`, `tools` and `messages`.
    """

    def __init__(self, body: Mapping[str, Any]) -> None:
        system = body.get("system") or []
        texts = [system] if isinstance(system, str) else [block["text"] for block in system]
        tools = sorted(
            (without_markers(tool) for tool in body.get("tools") or []), key=lambda tool: str(tool.get("name"))
        )
        self._beginning = hashlib.blake2b(digest([[text.strip() for text in texts], tools]).encode(), digest_size=12)
        self._hash = self._beginning.copy()

    def add(self, role: str, block: Mapping[str, Any]) -> None:
        """Take the next block of the conversation; a summary of it is where it begins anew."""
        if block["type"] in ("thinking", "redacted_thinking"):
            return
        if block["type"] == "compaction" and block.get("content") is not None:
            self._hash = self._beginning.copy()
            block = {"type": "compaction", "content": block["content"]}
        self._hash.update(digest([role, without_markers(block)]).encode())

    def value(self) -> str:
        """The hash of everything so far."""
        return self._hash.hexdigest()


def without_markers(value: Any) -> Any:
    """A block, tool or body without its cache markers, whitespace around texts and list form of a single text."""
    if isinstance(value, list):
        return [without_markers(item) for item in value]
    if not isinstance(value, dict):
        return value
    plain = {name: without_markers(item) for name, item in value.items() if name != "cache_control"}
    if plain.get("type") == "text" and isinstance(plain.get("text"), str):
        plain["text"] = plain["text"].strip()
    if plain.get("type") == "tool_result" and isinstance(plain.get("content"), str):
        plain["content"] = [{"type": "text", "text": plain["content"].strip()}]
    return plain


@dataclass(frozen=True, slots=True)
class Replay:
    """The body after the checks (unreadable blocks gone), the hash of it all, and what was dropped."""

    body: dict[str, Any]
    prefix: str
    transformations: list[dict[str, str]]


def check_replay(call: Call, roster: Roster, organization: str) -> Replay:
    """Run the three checks; raises `Refusal` (400) where one of them fails loudly."""
    history = History(call.body)
    dropped: list[dict[str, str]] = []
    messages: list[dict[str, Any]] = []
    spoken = [index for index, message in enumerate(call.body["messages"]) if message["role"] == "assistant"]
    ordinals: dict[str, int] = {}
    for index, message in enumerate(call.body["messages"]):
        content = message.get("content") or []
        if isinstance(content, str):
            history.add(message["role"], {"type": "text", "text": content})
            messages.append(message)
            continue
        kept = []
        for position, block in enumerate(content):
            path = f"messages.{index}.content.{position}"
            if block["type"] == "thinking":
                origin = _sealed(block, path, is_latest=bool(spoken) and index == spoken[-1], ordinals=ordinals)
                reason = _unreadable(call, origin, roster, organization) or _moved(call, origin, history, path)
                if reason:
                    dropped.append({"type": "thinking_dropped", "path": path, "reason": reason})
                    continue
            elif block["type"] == "redacted_thinking" and unsign(str(block["data"])) is None:
                raise Refusal(f"{path}: Invalid `data` in `redacted_thinking` block")
            history.add(message["role"], block)
            kept.append(block)
        messages.append({**message, "content": kept})
    return Replay({**call.body, "messages": messages}, history.value(), dropped)


def _sealed(block: Mapping[str, Any], path: str, *, is_latest: bool, ordinals: dict[str, int]) -> Origin:
    origin = unsign(block["signature"])
    if origin is None:
        raise Refusal(f"{path}: Invalid `signature` in `thinking` block")
    is_out_of_order = origin.ordinal <= ordinals.get(origin.message, -1)
    ordinals[origin.message] = origin.ordinal
    if origin.shown != digest(block["thinking"]) or is_out_of_order:
        if is_latest:
            raise Refusal(LATEST_MODIFIED.format(path=path))
        raise Refusal(f"{path}: Invalid `signature` in `thinking` block")
    return origin


def _unreadable(call: Call, origin: Origin, roster: Roster, organization: str) -> str | None:
    if not roster.can_read(call.model, origin.model):
        return "model_binding_mismatch"
    producer = roster.known(origin.model)
    is_bound = producer is not None and producer.fields["thinking_blocks_account_bound"]
    return "organization_binding_mismatch" if is_bound and origin.organization != organization else None


def _moved(call: Call, origin: Origin, history: History, path: str) -> str | None:
    if not (call.model.is_history_checked and origin.prefix) or origin.prefix == history.value():
        return None
    binding = (call.body.get("thinking") or {}).get("block_binding") or {}
    behavior = binding.get("prefix_mismatch_behavior") or ("drop_block" if call.is_batch else "error")
    if behavior == "drop_block":
        return "prefix_binding_mismatch"
    raise Refusal(WRONG_HISTORY.format(path=path) + ("" if b.BINDING in call.betas else NEEDS_BETA))


def prefix_to_bind(call: Call, prefix: str) -> str:
    """The history that a new signature is bound to: none for models that do not run the check."""
    return prefix if call.model.is_history_checked else ""

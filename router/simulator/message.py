"""An answer as the API sends it: the Message object, its usage, and the same as server-sent events."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from router.simulator import betas as b
from router.simulator.answer import Answer
from router.simulator.call import Call
from router.simulator.dice import Dice
from router.simulator.iterations import Iteration, are_listed, begun, input_counts
from router.simulator.promptcache import CachePlan
from router.simulator.reading import to_json
from router.simulator.tokens import text_tokens

PIECE = re.compile(r"\S+\s*|\s+")
WORDS_PER_DELTA = 4
JSON_PIECE_CHARS = 24
MESSAGES = ("message", "fallback_message")  # the iterations that the top-level counts speak of


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event and how many output tokens the model makes before it can be sent."""

    name: str
    data: dict[str, Any]
    tokens: float = 0.0

    def encoded(self) -> bytes:
        """The bytes of the event."""
        return b"event: " + self.name.encode() + b"\ndata: " + to_json(self.data) + b"\n\n"


def usage_of(
    call: Call,
    plan: CachePlan,
    output_tokens: int,
    thinking_tokens: int,
    searches: int,
    iterations: tuple[Iteration, ...] = (),
) -> dict[str, Any]:
    """The `usage` object of an answer; iterations are listed where they say more than the counts above them."""
    usage = {
        **input_counts(plan),
        "output_tokens": output_tokens,
        "output_tokens_details": {"thinking_tokens": thinking_tokens},
        "server_tool_use": {"web_search_requests": searches, "web_fetch_requests": 0} if searches else None,
        "service_tier": "batch" if call.is_batch else "standard",
        "inference_geo": call.geo,
        "speed": call.speed,
    }
    if are_listed(iterations):
        usage["iterations"] = [iteration.entry() for iteration in iterations]
    return usage


@dataclass(frozen=True, slots=True)
class Outcome:
    """A call with everything that came of it: `call` is the request as the model that made the message got it.

    `plan` is what the top-level counts say of the input. `iterations` are all sampling calls, in order. `opening` is
    the call and the plan that the start of a stream speaks of: another model's, where one declined in mid-stream.
    """

    call: Call
    answer: Answer
    plan: CachePlan
    transformations: list[dict[str, str]]
    iterations: tuple[Iteration, ...]
    opening: tuple[Call, CachePlan, list[dict[str, str]]]
    diagnostics: dict[str, Any] | None = None

    def usage(self) -> dict[str, Any]:
        """The final usage."""
        answer = self.answer
        return usage_of(
            self.call,
            self.plan,
            answer.output_tokens,
            answer.thinking_tokens,
            answer.web_searches,
            self.iterations,
        )

    def _usage_on_the_wire(self) -> dict[str, Any]:
        """The final usage as it is told: of one answer in three, entries do not say how long they write for.

        Nothing is lost by it: what they leave out is said at the top level, or is the default of five minutes. Source:
        the iteration usage types of the SDK, where `cache_creation` may be null.
        """
        usage = self.usage()
        if "iterations" in usage and Dice("split", self.answer.message_id).below("is left out", 3) == 0:
            is_told = all(ran.call.model is self.call.model for ran in self.iterations if ran.kind in MESSAGES)
            for ran, entry in zip(self.iterations, usage["iterations"], strict=True):
                if ran.plan.write_1h == 0 or (is_told and ran.kind in MESSAGES):
                    entry["cache_creation"] = None
        return usage

    def partial_usage(self, output_tokens: float) -> dict[str, Any]:
        """The usage of a stream that was cut after so many output tokens."""
        done = min(self.answer.output_tokens, max(1, round(output_tokens)))
        ran = tuple(begun(self.iterations, max(1, round(output_tokens))))
        return usage_of(self.call, self.plan, done, min(done, self.answer.thinking_tokens), 0, ran)

    def charges(self, output_tokens: float | None = None) -> list[Iteration]:
        """What is billed: every sampling call; of a stream that was cut, those begun, with what they had written."""
        if output_tokens is None:
            return list(self.iterations)
        return begun(self.iterations, max(1, round(output_tokens)))

    def message(self) -> dict[str, Any]:
        """The whole Message."""
        answer = self.answer
        message = self._object(
            list(answer.content), answer.stop_reason, answer.stop_sequence, self._usage_on_the_wire()
        )
        return message | ({"input_transformations": self.transformations} if self._shows_transformations else {})

    @property
    def _shows_transformations(self) -> bool:
        return b.BINDING in self.call.betas

    def _object(
        self, content: list[dict[str, Any]], stop_reason: str | None, stop_sequence: str | None, usage: dict[str, Any]
    ) -> dict[str, Any]:
        message: dict[str, Any] = {
            "model": self.call.model.id,
            "id": self.answer.message_id,
            "type": "message",
            "role": "assistant",
            "content": content,
            "stop_reason": stop_reason,
            "stop_sequence": stop_sequence,
            "stop_details": self.answer.stop_details if stop_reason else None,
            "container": None,
            "diagnostics": self.diagnostics,
            "usage": usage,
        }
        if self.call.body.get("context_management") is not None:
            message["context_management"] = {"applied_edits": []}
        return message

    def events(self) -> Iterator[Event]:
        """The answer as a stream. Source: streaming reference (order of events, cumulative usage)."""
        call, plan, transformations = self.opening
        start = self._object([], None, None, usage_of(call, plan, min(1, self.answer.output_tokens), 0, 0))
        start["model"] = call.model.id
        if self._shows_transformations:
            start["input_transformations"] = transformations
        yield Event("message_start", {"type": "message_start", "message": start})
        for index, block in enumerate(self.answer.content):
            yield Event("content_block_start", _block_start(index, block))
            if index == 0:
                yield Event("ping", {"type": "ping"})
            for delta, tokens in self._deltas(block):
                data = {"type": "content_block_delta", "index": index, "delta": delta}
                yield Event("content_block_delta", data, tokens)
            yield Event("content_block_stop", {"type": "content_block_stop", "index": index})
        final = self._usage_on_the_wire()
        kept = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "output_tokens")
        usage = {name: final[name] for name in (*kept, "output_tokens_details", "server_tool_use")}
        if "iterations" in final:
            usage["iterations"] = final["iterations"]
        answer = self.answer
        delta = {
            "stop_reason": answer.stop_reason,
            "stop_sequence": answer.stop_sequence,
            "stop_details": answer.stop_details,
            "container": None,
        }
        closing: dict[str, Any] = {"type": "message_delta", "delta": delta, "usage": usage}
        if self.call.body.get("context_management") is not None:
            closing["context_management"] = {"applied_edits": []}
        if self._shows_transformations and call is not self.call:
            closing["input_transformations"] = self.transformations
        yield Event("message_delta", closing)
        yield Event("message_stop", {"type": "message_stop"})

    def _deltas(self, block: dict[str, Any]) -> Iterator[tuple[dict[str, Any], float]]:
        kind, model = block["type"], self.call.model
        if kind == "text":
            for piece in _pieces(block["text"]):
                yield {"type": "text_delta", "text": piece}, text_tokens(piece, model)
        elif kind == "thinking":
            unseen = float(self.answer.thinking_tokens)
            for piece in _pieces(block["thinking"]):
                tokens = text_tokens(piece, model)
                unseen -= tokens
                delta: dict[str, Any] = {"type": "thinking_delta", "thinking": piece}
                if b.TOKEN_COUNT in self.call.betas:
                    delta["estimated_tokens"] = tokens
                yield delta, tokens
            yield {"type": "signature_delta", "signature": block["signature"]}, max(0.0, unseen)
        elif kind in ("tool_use", "server_tool_use"):
            yield {"type": "input_json_delta", "partial_json": ""}, 1.0
            text = to_json(block["input"]).decode()
            for place in range(0, len(text), JSON_PIECE_CHARS):
                piece = text[place : place + JSON_PIECE_CHARS]
                yield {"type": "input_json_delta", "partial_json": piece}, text_tokens(piece, model)
        elif kind == "compaction" and "signature" not in block:
            yield {"type": "compaction_delta", "content": block["content"]}, 0.0


def _block_start(index: int, block: dict[str, Any]) -> dict[str, Any]:
    kind = block["type"]
    empties: dict[str, dict[str, Any]] = {
        "text": {"text": ""},
        "thinking": {"thinking": "", "signature": ""},
        "tool_use": {"input": {}},
        "server_tool_use": {"input": {}},
    }
    empty = empties.get(kind, {})
    if kind == "compaction" and "signature" not in block:  # the signed one arrives whole
        empty = {"content": None}
    shown: dict[str, Any] = {**block, **empty}
    return {"type": "content_block_start", "index": index, "content_block": shown}


def _pieces(text: str) -> Iterator[str]:
    words = PIECE.findall(text)
    for place in range(0, len(words), WORDS_PER_DELTA):
        yield "".join(words[place : place + WORDS_PER_DELTA])

"""`Usage`: what one attempt was billed for; `UsageMeter`: the wire's payloads in, usage out.

Two facts of the wire shape this room. In a stream `message_start` carries a placeholder for the output count and the
usage of `message_delta` is cumulative: the last value of each count wins, nothing is ever added up. And with
compaction, an advisor or a server-side fallback the top-level counts leave iterations out: then `iterations` holds
what is billed. Source: Messages API reference, "Streaming" and "Usage"; beta iteration usage types of the official SDK.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token counts of one sampling call; the four input counts are disjoint."""

    input: int = 0  # prompt tokens that touched no prompt cache
    cache_read: int = 0
    cache_write_5m: int = 0  # an unsplit `cache_creation_input_tokens` counts here
    cache_write_1h: int = 0
    output: int = 0  # thinking included

    @property
    def prompt(self) -> int:
        """All prompt tokens, the length that long-prompt price tiers look at."""
        return self.input + self.cache_read + self.cache_write_5m + self.cache_write_1h


_NO_TOKENS = Tokens()


@dataclass(frozen=True, slots=True)
class Iteration:
    """One billed sampling call inside a request: `message`, `compaction`, `advisor_message` or `fallback_message`."""

    kind: str
    model: str | None  # None: the model of the response
    tokens: Tokens


@dataclass(frozen=True, slots=True)
class Usage:
    """What one attempt was billed for, as the upstream reported it.

    `is_final` is False for a stream cut before its `message_delta`: `tokens.output` is then a lower bound.
    `iterations` is empty when the top-level counts are the whole bill. `geo` and `speed` are None when not reported.
    """

    tokens: Tokens = Tokens()
    thinking: int = 0  # part of `tokens.output`, never an addition
    web_searches: int = 0
    iterations: tuple[Iteration, ...] = ()
    service_tier: str | None = None
    geo: str | None = None
    speed: str | None = None
    is_final: bool = True


class UsageMeter:
    """Collects what the payloads of one answer say: the model that answered, its usage and why it stopped."""

    __slots__ = ("_counts", "error_type", "is_final", "model", "stop_reason")

    def __init__(self) -> None:
        self._counts: dict[str, Any] = {}
        self.model: str | None = None
        self.stop_reason: str | None = None
        self.error_type: str | None = None  # of an `error` event or an error body
        self.is_final = False

    def message(self, payload: Mapping[str, Any]) -> None:
        """Take a whole Message (a plain answer), or the `message` of a `message_start` event."""
        self.model = _text(payload.get("model"))
        self.stop_reason = _text(payload.get("stop_reason"))
        self._take(payload.get("usage"))
        self.is_final = self.stop_reason is not None

    def event(self, payload: Mapping[str, Any]) -> None:
        """Take one event of a stream; only the kinds that carry usage or an end matter."""
        kind = payload.get("type")
        if kind == "message_start":
            message = payload.get("message")
            if isinstance(message, dict):
                self.message(message)
                self.is_final = False
        elif kind == "message_delta":
            delta = payload.get("delta")
            if isinstance(delta, dict) and delta.get("stop_reason") is not None:
                self.stop_reason = _text(delta["stop_reason"])
            usage = payload.get("usage")
            self._take(usage)
            self.is_final = True
            # Where a model declined in mid-stream, `message_start` named that one; who answered is said only here.
            if isinstance(usage, dict) and isinstance(usage.get("iterations"), list):
                self.model = _served_by(usage["iterations"]) or self.model
        elif kind == "error":
            self.error(payload)

    def error(self, payload: Mapping[str, Any]) -> None:
        """Take an error body or an `error` event."""
        error = payload.get("error")
        self.error_type = (_text(error.get("type")) if isinstance(error, dict) else None) or "api_error"

    def usage(self) -> Usage | None:
        """The usage so far; None when the upstream has reported none.

        All zeros are a usage only of an answer that came to its end. A stream that holds nothing but a summary of the
        conversation begins with zeros: cut there, it would else be booked as free.
        """
        counts = self._counts
        if not counts:
            return None
        tokens = _tokens(counts)
        if not self.is_final and tokens == _NO_TOKENS:
            return None
        details = counts.get("output_tokens_details")
        server_tools = counts.get("server_tool_use")
        iterations = counts.get("iterations")
        return Usage(
            tokens=tokens,
            thinking=_count(details.get("thinking_tokens")) if isinstance(details, dict) else 0,
            web_searches=_count(server_tools.get("web_search_requests")) if isinstance(server_tools, dict) else 0,
            iterations=_iterations(iterations) if isinstance(iterations, list) else (),
            service_tier=_text(counts.get("service_tier")),
            geo=_text(counts.get("inference_geo")),
            speed=_text(counts.get("speed")),
            is_final=self.is_final,
        )

    def _take(self, usage: object) -> None:
        """Overlay the counts of `usage`: a later value replaces an earlier one, null replaces nothing.

        `message_delta` restates what was written to the prompt cache without its split. Another count than before is
        another model's (a fallback in mid-stream): the split that was reported then says nothing of it.
        """
        if isinstance(usage, dict):
            counts = self._counts
            written = usage.get("cache_creation_input_tokens")
            has_split = usage.get("cache_creation") is not None
            if not has_split and written not in (None, counts.get("cache_creation_input_tokens", written)):
                counts.pop("cache_creation", None)
            counts.update((name, value) for name, value in usage.items() if value is not None)


def _tokens(counts: Mapping[str, Any]) -> Tokens:
    written = _count(counts.get("cache_creation_input_tokens"))
    split = counts.get("cache_creation")
    one_hour = _count(split.get("ephemeral_1h_input_tokens")) if isinstance(split, dict) else 0
    five_minutes = _count(split.get("ephemeral_5m_input_tokens")) if isinstance(split, dict) else 0
    return Tokens(
        input=_count(counts.get("input_tokens")),
        cache_read=_count(counts.get("cache_read_input_tokens")),
        cache_write_5m=max(five_minutes, written - one_hour),
        cache_write_1h=one_hour,
        output=_count(counts.get("output_tokens")),
    )


def _iterations(entries: list[Any]) -> tuple[Iteration, ...]:
    found = [
        Iteration(kind=_text(entry.get("type")) or "message", model=_text(entry.get("model")), tokens=_tokens(entry))
        for entry in entries
        if isinstance(entry, dict)
    ]
    if any(entry.kind == "fallback_message" for entry in found):
        _name_by_hop(found)
    return tuple(found)


def _name_by_hop(entries: list[Iteration]) -> None:
    """In a chain of models an entry without a name (a compaction has none) belongs to the hop that it leads to."""
    hop: str | None = None
    for place in range(len(entries) - 1, -1, -1):
        entry = entries[place]
        if entry.kind == "advisor_message":
            continue
        if entry.model is None:
            entries[place] = replace(entry, model=hop)
        else:
            hop = entry.model


def _served_by(entries: list[Any]) -> str | None:
    """The fallback model that made the message; None where none did."""
    for entry in entries:
        if isinstance(entry, dict) and entry.get("type") == "fallback_message":
            return _text(entry.get("model"))
    return None


def _count(value: object) -> int:
    """A token count; whatever is not a non-negative whole number counts as none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None

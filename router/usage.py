"""`Usage`: what one attempt was billed for; `UsageMeter`: the wire's payloads in, usage out.

Two facts of the wire shape this room. In a stream `message_start` carries a placeholder for the output count and the
usage of `message_delta` is cumulative: the last value of each count wins, nothing is ever added up. And with
compaction, an advisor or a server-side fallback the top-level counts leave iterations out: then `iterations` holds
what is billed. Source: Messages API reference, "Streaming" and "Usage"; beta iteration usage types of the official SDK.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from router.value import value_class


@value_class(frozen=True, slots=True)
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
_WRITTEN = "cache_creation_input_tokens"


@value_class(frozen=True, slots=True)
class Iteration:
    """One billed sampling call inside a request: `message`, `compaction`, `advisor_message` or `fallback_message`."""

    kind: str
    model: str | None  # None: the model of the response
    tokens: Tokens


@value_class(frozen=True, slots=True)
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
    """Collects what the payloads of one answer say: the model that answered, its usage and why it stopped.

    `sent` is the model that the request named, where that is known.
    """

    __slots__ = ("_counts", "_sent", "error_type", "is_final", "model", "stop_reason")

    def __init__(self, sent: str | None = None) -> None:
        self._counts: dict[str, Any] = {}
        self._sent = sent
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
            iterations=_iterations(iterations, tokens, self._sent) if isinstance(iterations, list) else (),
            service_tier=_text(counts.get("service_tier")),
            geo=_text(counts.get("inference_geo")),
            speed=_text(counts.get("speed")),
            is_final=self.is_final,
        )

    def _take(self, usage: object) -> None:
        """Overlay the counts of `usage`: a later value replaces an earlier one, null replaces nothing.

        `message_delta` restates what was written to the prompt cache without its split, and cumulative: it may have
        grown since the start, whose split still holds for its part. Only after a fallback in mid-stream is the count
        another model's, of which that split says nothing. Less than before without a fallback is no news of what was
        billed (a gateway that fills in zeros): what was written stays written.
        """
        if isinstance(usage, dict):
            counts = self._counts
            told = {name: value for name, value in usage.items() if value is not None}
            before, written = counts.get(_WRITTEN), told.get(_WRITTEN)
            if written is not None and before is not None and written != before and "cache_creation" not in told:
                if _is_fallback(told.get("iterations")):
                    counts.pop("cache_creation", None)
                elif _count(written) < _count(before):
                    del told[_WRITTEN]
            counts.update(told)


def _is_fallback(iterations: object) -> bool:
    return isinstance(iterations, list) and any(
        isinstance(entry, dict) and entry.get("type") == "fallback_message" for entry in iterations
    )


def _tokens(counts: Mapping[str, Any]) -> Tokens:
    written = _count(counts.get(_WRITTEN))
    five_minutes, one_hour = _split(counts)
    return Tokens(
        input=_count(counts.get("input_tokens")),
        cache_read=_count(counts.get("cache_read_input_tokens")),
        cache_write_5m=max(five_minutes, written - one_hour),
        cache_write_1h=one_hour,
        output=_count(counts.get("output_tokens")),
    )


def _split(counts: Mapping[str, Any]) -> tuple[int, int]:
    """What is said to be written to the prompt cache for five minutes, and for an hour."""
    split = counts.get("cache_creation")
    if not isinstance(split, dict):
        return 0, 0
    return _count(split.get("ephemeral_5m_input_tokens")), _count(split.get("ephemeral_1h_input_tokens"))


def _iterations(entries: list[Any], whole: Tokens, sent: str | None) -> tuple[Iteration, ...]:
    """The entries as they are billed; `whole` are the top-level counts, `sent` the model that was asked."""
    listed = [entry for entry in entries if isinstance(entry, dict)]
    found = [
        Iteration(kind=_text(entry.get("type")) or "message", model=_text(entry.get("model")), tokens=_tokens(entry))
        for entry in listed
    ]
    if any(entry.kind == "fallback_message" for entry in found):
        _name_by_hop(found, sent)
    if whole.cache_write_1h:
        _split_by_whole(
            found,
            [entry.tokens.cache_write_5m - _split(said)[0] for entry, said in zip(found, listed, strict=True)],
            whole,
        )
    return tuple(found)


def _split_by_whole(entries: list[Iteration], unsplit: list[int], whole: Tokens) -> None:
    """What the top level says was written for an hour was written by the messages, also where they do not say so.

    `unsplit` are the tokens of each entry that count as 5m only because nobody said for how long they were written.
    After a fallback the top level speaks of the model that answered at last, and so of its messages alone.
    """
    last = [entry.model for entry in entries if entry.kind == "fallback_message"][-1:]
    kinds = ("message", "fallback_message") if last else ("message",)
    own = [at for at, entry in enumerate(entries) if entry.kind in kinds and (not last or entry.model == last[0])]
    left = whole.cache_write_1h - sum(entries[at].tokens.cache_write_1h for at in own)
    for at in own:
        hour = min(left, unsplit[at])
        if hour > 0:
            left -= hour
            tokens = entries[at].tokens
            five, one = tokens.cache_write_5m - hour, tokens.cache_write_1h + hour
            entries[at] = replace(entries[at], tokens=replace(tokens, cache_write_5m=five, cache_write_1h=one))


def _name_by_hop(entries: list[Iteration], sent: str | None) -> None:
    """Name the entries of a chain of models that do not say whose they are.

    A message before the first that names its model was that of the model the request was sent to, which declined. Any
    other (a compaction never has a name) belongs to the hop that it leads to.
    """
    for place, entry in enumerate(entries):
        if entry.kind != "advisor_message" and entry.model is not None:
            break
        if entry.kind == "message" and entry.model is None:
            entries[place] = replace(entry, model=sent)
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
    return value if type(value) is int and value >= 0 else 0  # a bool is none


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None

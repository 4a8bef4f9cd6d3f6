"""What a conversation is bound to: the lane and model that serve it, whose thinking it carries, what is warm.

A program that calls a model again and again with a growing history is one conversation. Its prompt cache lives with one
model, and thinking blocks can be read by few others, so the router remembers who answered last.
Source: Anthropic fact sheet, sections 4 and 5.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

from router.facts.inspect import Facts
from router.usage import Tokens, Usage

MAX_PRODUCERS = 8  # models whose answers may be told apart in one conversation
_MAX_NAME_CHARS = 256
_MAX_BYTES = 32_768  # what `encode` writes is shorter: ten names of 256 characters, twelve bytes each at the most
_FORMAT = 1
_FIVE_MINUTES_S, _ONE_HOUR_S = 300, 3600


@dataclass(frozen=True, slots=True)
class Binding:
    """The state of one conversation after its last answer.

    `producers` are the ids of all models that answered in it, empty when they cannot all be told. `prefix_tokens` is
    what the next turn repeats: the prompt and the answer; 0 when it is not known. `cached_tokens` of these are in the
    provider's prompt cache for `cache_ttl_s` seconds after `served_at_s` (Unix time); 0 when the program does not use
    it. `output_tokens` is the length of the last answer.
    """

    lane: str
    model: str
    producers: tuple[str, ...]
    prefix_tokens: int
    cached_tokens: int
    cache_ttl_s: int
    output_tokens: int
    served_at_s: float

    def is_warm(self, now_s: float) -> bool:
        """Whether the provider's prompt cache should still hold the prefix."""
        return self.cached_tokens > 0 and now_s - self.served_at_s < self.cache_ttl_s

    def encode(self) -> bytes:
        """The binding as bytes for a store that other processes read."""
        fields = (
            _FORMAT, self.lane, self.model, self.producers, self.prefix_tokens, self.cached_tokens, self.cache_ttl_s,
            self.output_tokens, self.served_at_s,
        )  # fmt: skip
        return json.dumps(fields, separators=(",", ":")).encode()


def decode(data: bytes) -> Binding | None:
    """The binding that `encode` wrote; None for anything else, whoever wrote it."""
    if not isinstance(data, bytes) or len(data) > _MAX_BYTES:
        return None
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, list) or len(fields) != 9 or fields[0] != _FORMAT:
        return None
    _, lane, model, producers, *numbers = fields
    if not isinstance(producers, list) or len(producers) > MAX_PRODUCERS:
        return None
    if not all(_is_name(text) for text in (lane, model, *producers)):
        return None
    prefix, cached, ttl_s, output, served_at_s = numbers
    if not all(type(count) is int and 0 <= count < 2**40 for count in (prefix, cached, ttl_s, output)):
        return None
    if cached > prefix or type(served_at_s) not in (int, float) or not 0 <= served_at_s < 2**40:
        return None
    return Binding(lane, model, tuple(producers), prefix, cached, ttl_s, output, float(served_at_s))


def _is_name(text: object) -> bool:
    """Whether this may name a lane or a model; line breaks and lone surrogates, which no trace can store, may not."""
    return isinstance(text, str) and len(text) <= _MAX_NAME_CHARS and text.isprintable()


def binding_key(facts: Facts) -> str:
    """The key under which a conversation's binding is kept, 32 hex digits; it holds no text.

    Besides the conversation (which includes the tenant) it is the model asked for, so that a client who asks for
    another model gets it, and the kind of request: the titles and compactions that a client names as such in its
    session do not take the main loop along.
    """
    # The key of the conversation is of fixed length and the class has no line break; only the model is free text.
    parts = (facts.conversation_key, facts.request_class or "", facts.requested_model)
    return blake2b("\n".join(parts).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def bound(
    before: Binding | None, *, is_first: bool, lane: str, model: str, answered: str, usage: Usage | None, now_s: float
) -> Binding:
    """The binding after an answer on `lane`, sent to `model`; `answered` is the id of the model that says it answered.

    `is_first` says that the request had no earlier answer in it, so that `answered` alone has produced what is there.
    `usage` None is a replay from the router's cache: the provider saw nothing of it, so what it holds is as it was
    before. `now_s` (Unix time) is when the request was sent: from then on the provider counts the life of its cache.
    """
    if is_first:
        producers: tuple[str, ...] = (answered,)
    elif before is None or not before.producers:
        producers = ()
    else:
        producers = before.producers if answered in before.producers else (*before.producers, answered)
    if len(producers) > MAX_PRODUCERS or not all(_is_name(producer) for producer in producers):
        producers = ()
    if usage is None:
        if before is not None and before.model == model:
            return replace(before, lane=lane, producers=producers)
        return Binding(lane, model, producers, 0, 0, _FIVE_MINUTES_S, 0, now_s)
    tokens, last = usage.tokens, _last_call(usage)
    cached = last.cache_read + last.cache_write_5m + last.cache_write_1h
    was_hour = before is not None and before.cache_ttl_s == _ONE_HOUR_S and tokens.cache_write_5m == 0
    ttl_s = _ONE_HOUR_S if tokens.cache_write_1h or (was_hour and cached) else _FIVE_MINUTES_S
    return Binding(lane, model, producers, last.prompt + last.output, cached, ttl_s, tokens.output, now_s)


def _last_call(usage: Usage) -> Tokens:
    """The tokens of the last sampling call: the whole conversation as it is now.

    A loop of server tools bills the growing prompt once per call, and the top-level counts are the sum of them all.
    """
    calls = [entry.tokens for entry in usage.iterations if entry.kind in ("message", "fallback_message")]
    return calls[-1] if calls else usage.tokens


def recorded(binding: Binding | None) -> Mapping[str, Any] | None:
    """What a trace says of the binding that a request met."""
    if binding is None:
        return None
    return {"lane": binding.lane, "model": binding.model, "prefix_tokens": binding.prefix_tokens}

"""What a conversation is bound to: the lane and model that serve it, and what is warm.

A program that calls a model again and again with a growing history is one conversation. Its prompt cache lives with one
model, so the router remembers who answered last. (Who thought is kept apart: `affinity.thinking`.)
Source: Anthropic fact sheet, section 5.
"""

from __future__ import annotations

import json
from dataclasses import replace

from router.facts.identity import hashed
from router.facts.inspect import Facts
from router.usage import Tokens, Usage
from router.value import value_class

_MAX_NAME_CHARS = 256
_MAX_BYTES = 8_192  # what `encode` writes is shorter: two names of 256 characters, twelve bytes each at the most
_FORMAT = 2
_FIVE_MINUTES_S, _ONE_HOUR_S = 300, 3600


@value_class(frozen=True, slots=True)
class Binding:
    """The state of one conversation after its last answer.

    `prefix_tokens` is what the next turn repeats: the prompt and the answer; 0 when it is not known. `cached_tokens` of
    these are in the provider's prompt cache for `cache_ttl_s` seconds after `served_at_s` (Unix time); 0 when the
    program does not use it. `output_tokens` is the length of the last answer.
    """

    lane: str
    model: str
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
            _FORMAT, self.lane, self.model, self.prefix_tokens, self.cached_tokens, self.cache_ttl_s,
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
    if not isinstance(fields, list) or len(fields) != 8 or fields[0] != _FORMAT:
        return None
    _, lane, model, prefix, cached, ttl_s, output, served_at_s = fields
    if not _is_name(lane) or not _is_name(model):
        return None
    if not all(type(count) is int and 0 <= count < 2**40 for count in (prefix, cached, ttl_s, output)):
        return None
    if cached > prefix or type(served_at_s) not in (int, float) or not 0 <= served_at_s < 2**40:
        return None
    return Binding(lane, model, prefix, cached, ttl_s, output, float(served_at_s))


def _is_name(text: object) -> bool:
    """Whether this may name a lane or a model; line breaks and lone surrogates, which no trace can store, may not."""
    return isinstance(text, str) and len(text) <= _MAX_NAME_CHARS and text.isprintable()


def binding_keys(facts: Facts) -> tuple[str, ...]:
    """The keys under which a conversation's binding is looked for, the surest first; 32 hex digits, no text.

    Besides the conversation (which includes the tenant) a key is made of the policy, the model asked for, so that a
    client who asks for another model gets it, and the kind of request: the titles and compactions that a client names
    as such in its session do not take the main loop along. Where the client names its session there are two keys: one
    of this conversation in it (told by its first user turn), and one of the session, which knows a conversation whose
    beginning the client has rewritten.
    """
    parts = (facts.conversation_key, facts.policy, facts.request_class or "", facts.requested_model)
    turn = facts.session_turn_key
    whole = hashed(parts)
    return (whole,) if turn is None else (hashed((*parts, turn)), whole)


def bound(before: Binding | None, *, lane: str, model: str, usage: Usage | None, now_s: float) -> Binding:
    """The binding after an answer on `lane`, sent to `model`.

    `usage` None is a replay from the router's cache: the provider saw nothing of it, so what it holds is as it was
    before. `now_s` (Unix time) is when the request was sent: from then on the provider counts the life of its cache.
    """
    if usage is None:
        if before is not None and before.model == model:
            return replace(before, lane=lane)
        return Binding(lane, model, 0, 0, _FIVE_MINUTES_S, 0, now_s)
    tokens, last = usage.tokens, _last_call(usage)
    cached = last.cache_read + last.cache_write_5m + last.cache_write_1h
    was_hour = before is not None and before.cache_ttl_s == _ONE_HOUR_S and tokens.cache_write_5m == 0
    ttl_s = _ONE_HOUR_S if tokens.cache_write_1h or (was_hour and cached) else _FIVE_MINUTES_S
    return Binding(lane, model, last.prompt + last.output, cached, ttl_s, tokens.output, now_s)


def _last_call(usage: Usage) -> Tokens:
    """The tokens of the last sampling call: the whole conversation as it is now.

    A loop of server tools bills the growing prompt once per call, and the top-level counts are the sum of them all.
    """
    calls = [entry.tokens for entry in usage.iterations if entry.kind in ("message", "fallback_message")]
    return calls[-1] if calls else usage.tokens

"""A cache entry as bytes in a shared store, and back; whatever is not exactly what was written is None.

    format (1) | checksum (16) | length of the marks (4) | marks (JSON) | body, compressed where the marks say so

The checksum covers the entry's key and everything behind the checksum, and is keyed with the owner's secret: a value
that was cut, changed, or moved under another key is not read, and without the secret none can be forged. Marks are
data of known types and nothing else; nothing that is stored is ever run.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import Any

import orjson
import zstandard

from router.cache.entry import CacheEntry
from router.usage import Iteration, Tokens, Usage

MAX_BODY_BYTES = 64 * 1024 * 1024  # the largest `max_bytes` that a rule may have
MARKS_BYTES = 8192  # at most; enough for a purge to read an entry's marks without its body

_FORMAT = b"\x01"
_CHECKSUM = 16
_HEAD = 1 + _CHECKSUM + 4
_WORTH_COMPRESSING = 1024  # bytes; below, little is won. Source: ecosystem sheet, section 6
_LEVEL = 3
_TOKENS = ("input", "cache_read", "cache_write_5m", "cache_write_1h", "output")
_TEXT = (str, type(None))


class EntryCodec:
    """Writes and reads entries; `secret` keys the checksum (any length, may be empty)."""

    def __init__(self, secret: bytes = b"") -> None:
        self._secret = hashlib.blake2b(secret, digest_size=32, person=b"router cache").digest()

    def encode(self, key: str, entry: CacheEntry) -> bytes | None:
        """The bytes to keep under `key`; None when the marks of this entry are too long to keep."""
        body = entry.body
        if len(body) >= _WORTH_COMPRESSING:
            smaller = zstandard.ZstdCompressor(level=_LEVEL).compress(body)  # made anew: not for two threads at once
            if len(smaller) < len(body) - len(body) // 10:
                body = smaller
        usage = entry.usage
        marks = orjson.dumps(
            {
                "tenant": entry.tenant,
                "rule": entry.rule,
                "model": entry.model,
                "asked_at_ns": entry.asked_at_ns,
                "expires_at_ns": entry.expires_at_ns,
                "stored_at_ns": entry.stored_at_ns,
                "status": entry.status,
                "headers": [(name.decode("latin-1"), value.decode("latin-1")) for name, value in entry.headers],
                "model_answered": entry.model_answered,
                "stop_reason": entry.stop_reason,
                "usage": None if usage is None else _written(usage),
                "bytes": len(entry.body),
                "is_compressed": body is not entry.body,
            }
        )
        if len(marks) > MARKS_BYTES - _HEAD:
            return None
        rest = len(marks).to_bytes(4, "big") + marks + body
        return b"".join((_FORMAT, self._checksum(key, rest), rest))

    def decode(self, key: str, data: bytes, max_bytes: int) -> CacheEntry | None:
        """The entry that was kept under `key`; None for anything else, and for a body of over `max_bytes`."""
        rest = memoryview(data)[1 + _CHECKSUM :]
        if data[:1] != _FORMAT or not hmac.compare_digest(data[1 : 1 + _CHECKSUM], self._checksum(key, rest)):
            return None
        try:
            marks = _marks(data)
            size = marks["bytes"]
            if not 0 <= size <= max_bytes:
                return None
            body = data[_HEAD + int.from_bytes(data[_HEAD - 4 : _HEAD], "big") :]
            if marks["is_compressed"]:
                if zstandard.frame_content_size(body) != size:  # what the library would make room for
                    return None
                body = zstandard.ZstdDecompressor().decompress(body)
            if len(body) != size:
                return None
            return CacheEntry(
                status=_typed(marks["status"], int),
                headers=[(name.encode("latin-1"), value.encode("latin-1")) for name, value in marks["headers"]],
                body=body,
                usage=None if marks["usage"] is None else _read(marks["usage"]),
                model_answered=_typed(marks["model_answered"], *_TEXT),
                stop_reason=_typed(marks["stop_reason"], *_TEXT),
                asked_at_ns=_typed(marks["asked_at_ns"], int),
                expires_at_ns=_typed(marks["expires_at_ns"], int),
                stored_at_ns=_typed(marks["stored_at_ns"], int),
                tenant=_typed(marks["tenant"], str),
                rule=_typed(marks["rule"], str),
                model=_typed(marks["model"], str),
            )
        except (KeyError, TypeError, ValueError, AttributeError, zstandard.ZstdError):
            return None  # of our making by its checksum, but of another version of us

    def is_too_large(self, data: bytes, max_bytes: int) -> bool:
        """Whether this begins like an entry of over `max_bytes`, put by a rule that keeps larger answers."""
        try:
            size = _marks(data)["bytes"]
        except (KeyError, TypeError, ValueError):
            return False
        return type(size) is int and max_bytes < size <= MAX_BODY_BYTES

    def _checksum(self, key: str, rest: bytes | memoryview) -> bytes:
        digest = hashlib.blake2b(_FORMAT, digest_size=_CHECKSUM, key=self._secret)
        digest.update(len(key).to_bytes(4, "big") + key.encode())
        digest.update(rest)
        return digest.digest()


def marks_of(data: bytes) -> tuple[int, str, str, str] | None:
    """(`asked_at_ns`, tenant, rule, model) of an entry's first `MARKS_BYTES`, unchecked; None when there are none."""
    try:
        marks = _marks(data)
        names = [_typed(marks[name], str) for name in ("tenant", "rule", "model")]
        return _typed(marks["asked_at_ns"], int), names[0], names[1], names[2]
    except (KeyError, TypeError, ValueError):
        return None


def _marks(data: bytes) -> dict[str, Any]:
    length = int.from_bytes(data[_HEAD - 4 : _HEAD], "big")
    if data[:1] != _FORMAT or length > MARKS_BYTES or len(data) < _HEAD + length:
        raise ValueError("no marks")
    marks = orjson.loads(data[_HEAD : _HEAD + length])
    if not isinstance(marks, dict):
        raise TypeError("marks are a mapping")
    return marks


def _typed(value: Any, *kinds: type) -> Any:
    if type(value) not in kinds:
        raise TypeError("a mark of another type")
    return value


def _written(usage: Usage) -> dict[str, Any]:
    return {
        "tokens": _counts(usage.tokens),
        "thinking": usage.thinking,
        "web_searches": usage.web_searches,
        "iterations": [(each.kind, each.model, _counts(each.tokens)) for each in usage.iterations],
        "service_tier": usage.service_tier,
        "geo": usage.geo,
        "speed": usage.speed,
        "is_final": usage.is_final,
    }


def _read(written: Mapping[str, Any]) -> Usage:
    return Usage(
        tokens=_tokens(written["tokens"]),
        thinking=_typed(written["thinking"], int),
        web_searches=_typed(written["web_searches"], int),
        iterations=tuple(
            Iteration(_typed(kind, str), _typed(model, *_TEXT), _tokens(counts))
            for kind, model, counts in written["iterations"]
        ),
        service_tier=_typed(written["service_tier"], *_TEXT),
        geo=_typed(written["geo"], *_TEXT),
        speed=_typed(written["speed"], *_TEXT),
        is_final=_typed(written["is_final"], bool),
    )


def _counts(tokens: Tokens) -> list[int]:
    return [getattr(tokens, name) for name in _TOKENS]


def _tokens(counts: list[Any]) -> Tokens:
    return Tokens(**{name: _typed(count, int) for name, count in zip(_TOKENS, counts, strict=True)})

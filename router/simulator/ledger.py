"""What the simulated account is billed, in integer pico-dollars, and what requests arrived.

The arithmetic is done here once more, from `models.yaml`, with fractions: it is the yardstick for the router's own.
"""

from __future__ import annotations

import base64
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from router.simulator.record import ModelRecord, Roster

PUSD_PER_USD = 10**12
TOKENS_PER_PRICE = 10**6
KEPT_REQUESTS = 1_000
KEPT_BODY_BYTES = 64 * 1024 * 1024


def cost_pusd(usage: Mapping[str, Any], model: ModelRecord, roster: Roster) -> int:
    """The price of one sampling call in pico-dollars (USD x 10^12).

    `usage` is as the API reports it. Tokens cost by category at the tier of the whole prompt; batch, region and fast
    mode multiply; each web search adds its own price. Source: pricing documentation.
    """
    searches = (usage.get("server_tool_use") or {}).get("web_search_requests") or 0
    return _pusd(_usd(usage, model) + _searches_usd(searches, roster))


def bill_pusd(charges: Sequence[tuple[ModelRecord, Mapping[str, Any]]], searches: int, roster: Roster) -> int:
    """The price of an answer that took several sampling calls: each at its own model and prompt length, rounded once.

    Web searches are paid once, whichever call made them.
    """
    calls = sum((_usd(usage, model) for model, usage in charges), Fraction())
    return _pusd(calls + _searches_usd(searches, roster))


def _searches_usd(searches: int, roster: Roster) -> Fraction:
    return searches * Fraction(str(roster.global_rules["web_search_usd_per_search"]))


def _pusd(usd: Fraction) -> int:
    return round(usd * PUSD_PER_USD)


def _usd(usage: Mapping[str, Any], model: ModelRecord) -> Fraction:
    created = usage.get("cache_creation") or {}
    total_written = usage.get("cache_creation_input_tokens") or 0
    write_1h = created.get("ephemeral_1h_input_tokens") or 0
    tokens = {
        "input": usage.get("input_tokens") or 0,
        "cache_read": usage.get("cache_read_input_tokens") or 0,
        "cache_write_1h": write_1h,
        "cache_write_5m": total_written - write_1h,
        "output": usage.get("output_tokens") or 0,
    }
    rates: Mapping[str, Any] = model.fields["usd_per_mtok"]
    prompt = sum(count for name, count in tokens.items() if name != "output")
    tier = model.fields["long_prompt_tier"]
    if tier and prompt > tier["above_prompt_tokens"]:
        rates = tier
    if usage.get("speed") == "fast" and model.fields["fast_mode"]:
        rates = model.fields["fast_mode"]
    usd = sum((count * Fraction(str(rates[name])) for name, count in tokens.items()), Fraction())
    usd /= TOKENS_PER_PRICE
    if usage.get("service_tier") == "batch":
        usd *= Fraction(str(model.fields["batch_multiplier"]))
    if usage.get("inference_geo") == "us":
        usd *= Fraction(str(model.fields["us_inference_multiplier"] or 1))
    return usd


@dataclass(slots=True)
class Ledger:
    """Every billed call, in the order in which it ended."""

    roster: Roster
    entries: list[dict[str, Any]] = field(default_factory=list)

    def bill(
        self,
        request_id: str,
        model: ModelRecord,
        usage: Mapping[str, Any],
        *,
        charges: Sequence[tuple[ModelRecord, Mapping[str, Any]]] | None = None,
        message_id: str | None = None,
        is_complete: bool = True,
    ) -> None:
        """Book one answer; `is_complete` is False for a stream that the client or a script cut.

        `usage` is what was reported. The price is that of `charges`, the sampling calls that really ran; without any,
        that of the usage.
        """
        searches = (usage.get("server_tool_use") or {}).get("web_search_requests") or 0
        own = [(model, usage)] if charges is None else charges
        self.entries.append(
            {
                "request_id": request_id,
                "message_id": message_id,
                "model": model.id,
                "usage": dict(usage),
                "cost_pusd": bill_pusd(own, searches, self.roster),
                "is_complete": is_complete,
            }
        )

    def as_json(self) -> dict[str, Any]:
        """All entries and their sum."""
        return {"entries": self.entries, "total_pusd": sum(entry["cost_pusd"] for entry in self.entries)}

    def clear(self) -> None:
        """Start again at nothing."""
        self.entries.clear()


class Arrivals:
    """The last requests exactly as they came, so that a test can compare bytes; bounded in number and in size."""

    def __init__(self) -> None:
        self._kept: deque[dict[str, Any]] = deque()
        self._bytes = 0
        self.count = 0

    def add(self, scope: Mapping[str, Any], body: bytes, request_id: str) -> dict[str, Any]:
        """Keep one request; the record that is returned may be completed later (`status`, `is_disconnected`)."""
        self.count += 1
        query = scope["query_string"].decode("latin-1")
        record = {
            "number": self.count,
            "request_id": request_id,
            "method": scope["method"],
            "path": scope["path"],
            "target": scope["raw_path"].decode("latin-1") + (f"?{query}" if query else ""),
            "headers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in scope["headers"]],
            "body": body,
            "status": None,
            "is_disconnected": False,
        }
        self._kept.append(record)
        self._bytes += len(body)
        while self._kept and (len(self._kept) > KEPT_REQUESTS or self._bytes > KEPT_BODY_BYTES):
            self._bytes -= len(self._kept.popleft()["body"])
        return record

    def as_json(self, limit: int) -> dict[str, Any]:
        """The last `limit` requests, oldest first; bodies in base64."""
        chosen = list(self._kept)[-limit:] if limit > 0 else []
        shown = [{**record, "body": base64.b64encode(record["body"]).decode()} for record in chosen]
        return {"count": self.count, "requests": shown}

    def clear(self) -> None:
        """Forget every request."""
        self._kept.clear()
        self._bytes = self.count = 0

"""The requests of the demo: what an ordinary day of a small company looks like, as keyword arguments of the SDK."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SONNET, HAIKU, OPUS = "claude-sonnet-5-5", "claude-haiku-5-5", "claude-opus-5-5"

_TICKETS = (
    "I was charged twice for my March invoice and nobody answers the phone.",
    "After resetting my password the app says my account is locked.",
    "The export button does nothing in Firefox, the console shows a CORS error.",
)
_RECEIPT = (
    "CORNER BAKERY, 12 Mill Lane, York. 14 Nov 2026 08:41. 2 x flat white 7.20, 1 x almond croissant 3.40, "
    "1 x sourdough loaf 4.80. Total 15.40 GBP, paid by card ending 4471. Receipt no. 20391."
)
_MINUTES = (
    "Ana opened the meeting and reported that the new warehouse will be ready three weeks late because the fire "
    "inspection was moved. Tomas asked whether the December orders could be shipped from Leipzig instead; Ana thinks "
    "two thirds of them can. Priya will ask the carrier for a price by Friday. The team agreed to tell the four "
    "largest customers now rather than in December. Tomas drafts the letter, Ana signs it. Next meeting on Tuesday."
)
_CONTRACT = " ".join(
    f"Clause {number}. The supplier delivers within {3 + number % 9} working days of an order; later than that the "
    f"buyer may withhold {number % 5 + 1} percent of the price for each day begun, at most {10 + number % 7} percent."
    for number in range(1, 90)
)
_WEATHER_TOOL = {
    "name": "get_weather",
    "description": "The weather in a city now",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}},
        "required": ["city", "unit"],
        "additionalProperties": False,
    },
}
_RECEIPT_SCHEMA = {
    "type": "object",
    "properties": {
        "merchant": {"type": "string"},
        "date": {"type": "string"},
        "total": {"type": "number"},
        "currency": {"type": "string"},
    },
    "required": ["merchant", "date", "total", "currency"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Errand:
    """One request of the demo: what it is called, the SDK's arguments, and whether it is streamed."""

    title: str
    arguments: dict[str, Any] = field(repr=False)
    is_streamed: bool = False


def first_errands() -> list[Errand]:
    """The varied part of the day."""
    errands = [
        _ask(f"ticket {number}", f"Classify this support ticket as billing, account or technical.\n\n{ticket}", 300)
        for number, ticket in enumerate(_TICKETS, 1)
    ]
    errands += [
        _ask("sentiment", "Is the sentiment of this review positive, negative or neutral? "
             "\"The room was small but spotless, and breakfast was the best of our trip.\"", 20, OPUS),
        _ask("receipt as JSON", f"Extract merchant, date, total and currency from this receipt.\n\n{_RECEIPT}", 300,
             output_config={"format": {"type": "json_schema", "schema": _RECEIPT_SCHEMA}}),
        _ask("names in minutes", f"List the people mentioned in these minutes, one per line.\n\n{_MINUTES}", 200),
        _ask("minutes in brief", f"Summarize these minutes in two sentences.\n\n{_MINUTES}", 300, is_streamed=True),
        _ask("contract in brief", f"Summarize the following contract for a busy reader.\n\n{_CONTRACT}", 400,
             is_streamed=True),
        _ask("translate to German", f"Translate into German.\n\n{_TICKETS[0]}", 300),
        _ask("translate to French", f"Translate the following text to French.\n\n{_MINUTES}", 600, is_streamed=True),
        _ask("question on the text", f"According to the text, who drafts the letter?\n\n{_MINUTES}", 100),
        _ask("polish a mail", "Rewrite this more politely: Send me the figures today, I have asked twice.", 200),
        _ask("two trains", "Two trains start 312 km apart towards each other, one at 74 km/h, the other 20 minutes "
             "later at 92 km/h. Where and when do they meet? Prove your answer.", 2000, is_streamed=True),
        _ask("a proof", "Prove that there are infinitely many primes congruent to 3 modulo 4.", 2000),
        _ask("fix a race", "This Python cache has a race condition under threads. Find it, fix it and explain the "
             "memory model at work:\n\nclass Cache:\n    def get(self, k, make):\n        if k not in self.d:\n"
             "            self.d[k] = make()\n        return self.d[k]", 2000, is_streamed=True),
        _ask("write a parser", "Write a recursive-descent parser in Rust for arithmetic with precedence, unary minus "
             "and good error messages; include unit tests.", 2500, HAIKU),
        _ask("expert question", "Why did the Byzantine theme system decline in the eleventh century, and how do "
             "Haldon and Treadgold differ on it?", 1500),
        _ask("hard on Opus", "Design a schema migration for a sharded ledger without downtime; discuss failure at each "
             "step and prove that no entry is lost.", 2500, OPUS, is_streamed=True),
    ]  # fmt: skip
    return errands


def repeats() -> list[Errand]:
    """The same questions again, as users ask them: the cache answers."""
    again = {"ticket 1", "ticket 2", "translate to German", "minutes in brief", "question on the text"}
    return [
        Errand(f"{errand.title}, again", errand.arguments, errand.is_streamed)
        for errand in first_errands()
        if errand.title in again
    ]


def tool_turns() -> tuple[Errand, Any]:
    """A question that needs a tool, and the function that makes the second turn from the first answer's content."""
    question = "What should I wear in Oslo today? Look the weather up in celsius."
    first = _ask("weather, with a tool", question, 500, tools=[_WEATHER_TOOL])

    def second(content: Any, tool_use_id: str) -> Errand:
        result = {"type": "tool_result", "tool_use_id": tool_use_id, "content": "4 degrees, light rain, wind from west"}
        messages = [*first.arguments["messages"], {"role": "assistant", "content": content}]
        messages.append({"role": "user", "content": [result]})
        return Errand("weather, with the result", {**first.arguments, "messages": messages})

    return first, second


def batch_items() -> list[dict[str, Any]]:
    """Work that can wait: one Message Batch at half the price."""
    return [
        {
            "custom_id": f"review-{number}",
            "params": {
                "model": HAIKU,
                "max_tokens": 400,
                "messages": [{"role": "user", "content": f"Classify as praise, complaint or question: {text}"}],
            },
        }
        for number, text in enumerate((*_TICKETS, "Thank you, the repair was quick and the staff kind."), 1)
    ]


def translation(number: int) -> Errand:
    """One of the small requests that run while the policy is edited; each is another text, so that none is cached."""
    return _ask(f"translate note {number}", f"Translate into Spanish: Parcel {number} is waiting at the desk.", 200)


def _ask(
    title: str, text: str, max_tokens: int, model: str = SONNET, *, is_streamed: bool = False, **more: Any
) -> Errand:
    messages = [{"role": "user", "content": text}]
    return Errand(title, {"model": model, "max_tokens": max_tokens, "messages": messages, **more}, is_streamed)

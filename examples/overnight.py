"""Classifies tickets overnight through model-router, each at half price.

    python examples/overnight.py tickets.jsonl results.jsonl

A line of tickets.jsonl is {"id": "t-1", "text": "My card was charged twice"}. Each ticket is sent with
`Prefer: respond-async`, and the place of its answer is kept in results.jsonl.sent. Stop the program whenever you like,
by `kill -9` if need be, and run it again: no ticket is sent twice, none gets two results. One run at a time.

ANTHROPIC_BASE_URL is the address of the router, ANTHROPIC_API_KEY the key as ever.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import anthropic
from anthropic import APIResponse
from anthropic.types import Message

MODEL = "claude-sonnet-5-5"  # what it would be asked at once; the router's policy may choose a cheaper one
PROMPT = "Classify this ticket as billing, technical or account. Answer with that one word."
WAIT_S = 60  # that the router may hold the connection for an answer


class Journal:
    """A file of JSON lines with an `id` each. Half a line at its end is what a kill left, and is taken off."""

    def __init__(self, path: Path) -> None:
        text = path.read_bytes() if path.exists() else b""
        whole = text[: text.rfind(b"\n") + 1]
        if whole != text:
            os.truncate(path, len(whole))
        self._path = path
        self.entries: dict[str, dict[str, Any]] = {entry["id"]: entry for entry in map(json.loads, whole.splitlines())}

    def add(self, **entry: Any) -> None:
        """Write an entry down before anything else happens."""
        with self._path.open("ab") as file:
            file.write(json.dumps(entry).encode() + b"\n")
        self.entries[entry["id"]] = entry


def tickets(path: Path) -> dict[str, str]:
    """The texts by id; an id that comes twice ends the program."""
    found: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        ticket = json.loads(line)
        if ticket["id"] in found:
            sys.exit(f"{path}:{number}: the id `{ticket['id']}` comes twice")
        found[ticket["id"]] = ticket["text"]
    return found


def answer(message: Message, headers: Any) -> dict[str, Any]:
    """What is kept of a Message; the costs are in dollars, and unknown where the router does not know the price."""
    text = "".join(block.text for block in message.content if block.type == "text")
    cost, saved = headers.get("x-router-cost-usd"), headers.get("x-router-saved-usd")
    return {"answer": text, "model": message.model, "cost_usd": cost, "saved_usd": saved}


def send(client: anthropic.Anthropic, ticket: str, text: str, sent: Journal, results: Journal) -> None:
    """Hand a ticket in. Under its idempotency key it is one request, however often it has to be sent."""
    reply = client.messages.with_raw_response.create(
        model=MODEL,
        max_tokens=500,  # room for a model that thinks first
        system=PROMPT,
        messages=[{"role": "user", "content": text}],
        extra_headers={"prefer": "respond-async", "idempotency-key": f"overnight-{ticket}"},
    )
    if reply.status_code == 202:
        sent.add(id=ticket, location=reply.headers["location"])
    else:  # this router, or the rule that decided, defers nothing: here is the answer
        results.add(id=ticket, **answer(reply.parse(), reply.headers))


def fetch(client: anthropic.Anthropic, ticket: str, location: str, results: Journal) -> None:
    """Wait for the answer to a ticket. Most are there by the time the first is: a batch ends as a whole."""
    while True:
        try:
            options: Any = {"headers": {"prefer": f"wait={WAIT_S}"}}
            reply = client.get(location, cast_to=APIResponse[Message], options=options)
        except anthropic.APIStatusError as error:
            if "proxy-status" in error.response.headers:  # the router's own trouble and not the answer: run it again
                raise
            results.add(id=ticket, error=error.message, status=error.status_code)
            return
        if reply.status_code == 200:
            results.add(id=ticket, **answer(reply.parse(), reply.headers))
            return
        time.sleep(float(reply.headers["retry-after"]))


def main(source: Path, target: Path) -> None:
    """Send what was not sent, fetch what was not fetched."""
    todo, sent, results = tickets(source), Journal(target.with_name(f"{target.name}.sent")), Journal(target)
    with anthropic.Anthropic(max_retries=10) as client:
        for ticket, text in todo.items():
            if ticket not in sent.entries and ticket not in results.entries:
                send(client, ticket, text, sent, results)
        for ticket, entry in sent.entries.items():
            if ticket not in results.entries:
                fetch(client, ticket, entry["location"], results)
    kept = results.entries.values()
    failed = sum("error" in entry for entry in kept)
    paid, saved = (sum(float(entry.get(name) or 0) for entry in kept) for name in ("cost_usd", "saved_usd"))
    print(f"{len(kept)} tickets, {failed} failed, ${paid:.6f} paid, ${saved:.6f} saved")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

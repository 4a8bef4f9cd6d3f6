"""Every cent is accounted for: what the traces say was spent is what the upstream bills, to the pico-dollar."""

from __future__ import annotations

import asyncio
import json
import random
import urllib.request
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from kit.live import Live, live
from kit.recording import Client
from kit.varied import bodies, spelled

COUNT = 1000


@pytest.mark.anyio
async def test_the_traced_cost_of_a_thousand_requests_is_the_ledgers(tmp_path: Path) -> None:
    """Plain and streamed, prompt caches, tools, structured output, refused requests, repeats from the cache."""
    dice = random.Random(7)
    jobs = []
    for number, body in enumerate(bodies(seed=7, count=COUNT)):
        body["stream"] = number % 2 == 0
        if number % 50 == 0:
            body["max_tokens"] = 10_000_000  # refused by the upstream: costs nothing
        if number % 10 == 0 and jobs:
            body = dice.choice(jobs)  # a repeat: answered by the cache where the rule caches
        jobs.append(body)
    with live(tmp_path) as stage:
        queue = iter(jobs)

        async def one_after_another() -> None:
            client = await Client.to(stage.api)
            for body in queue:
                headers = {"x-api-key": "sk-test", "anthropic-version": "2026-10-21"}
                answer = await client.post("/v1/messages", spelled(body, dice), headers)
                assert answer.status in (200, 400), answer
            await client.close()

        await asyncio.gather(*(one_after_another() for _ in range(8)))
        rows = exact_traces(stage)
        ledger = stage.ledger()
    assert len(rows) == COUNT
    traced = sum(Decimal(str(row["cost_usd"])) for row in rows)
    assert traced * 10**12 == ledger["total_pusd"]
    assert traced > 0
    billed = {entry["request_id"] for entry in ledger["entries"]}
    paid = [row["request_id"] for row in rows if row["cost_usd"]]
    assert len(paid) == len(set(paid)), "one request, one entry"
    assert set(paid) == billed
    hits = [row for row in rows if row["cache"] == "hit"]
    assert hits
    assert all(row["cost_usd"] == 0 and row["saved_usd"] == row["baseline_usd"] > 0 for row in hits)
    assert all(row["saved_usd"] == row["baseline_usd"] - row["cost_usd"] for row in rows)


def exact_traces(stage: Live) -> list[dict[str, Any]]:
    """All traces, money as exact decimals."""
    rows: list[dict[str, Any]] = []
    mark = ""
    while True:
        with urllib.request.urlopen(f"{stage.admin}/traces?limit=500{mark}", timeout=30) as answer:
            page = json.load(answer, parse_float=Decimal)
        rows += page["traces"]
        if not page["next"]:
            return rows
        mark = f"&before={page['next']}"

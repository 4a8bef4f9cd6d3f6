"""A batch is made while another process holds the file of `jobs` locked: its client waits once, and briefly."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
from pathlib import Path

import pytest
from kit.stage import answers, http, stage

pytestmark = pytest.mark.anyio

BATCHES = "/v1/messages/batches"
MADE = http(b'{"id": "msgbatch_1", "type": "message_batch"}')
KEY = [(b"x-api-key", b"sk-anna"), (b"anthropic-version", b"2023-06-01")]


def batch(count: int) -> bytes:
    params = {"model": "claude-haiku-5-5", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}
    return json.dumps({"requests": [{"custom_id": f"i{n}", "params": params} for n in range(count)]}).encode()


@pytest.mark.parametrize("holds_key", [False, True])
async def test_a_batch_waits_once_for_a_locked_store(tmp_path: Path, holds_key: bool):
    """Its 4,000 decisions are put a thousand at a time. Where the router holds the key it is refused there and then."""
    more = {}
    if holds_key:
        digest = hashlib.sha256(b"sk-anna").hexdigest()
        (tmp_path / "keys.yaml").write_text(f"keys:\n  - name: anna\n    sha256: {digest}\n    tenant: a\n")
        more = {"keys": str(tmp_path / "keys.yaml"), "upstream_api_key": "sk-owner"}
    holder = sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)
    async with stage(answers(MADE), jobs=f"sqlite:///{tmp_path}/jobs.db", **more) as s:
        assert await s.app.stores.decisions.put("t", {"a": b"1"})
        holder.execute("BEGIN IMMEDIATE")
        puts = []
        put = s.app.stores.decisions.put

        async def counted(ticket: str, entries: dict[str, bytes]) -> bool:
            puts.append(len(entries))
            return await put(ticket, entries)

        s.app.stores.decisions.put = counted  # type: ignore[method-assign]
        async with asyncio.timeout(8.0):
            reply = await s.request("POST", BATCHES, batch(4_000), KEY)
        assert len(puts) == 1
        assert reply.status == (503 if holds_key else 200)
        if holds_key:
            assert 'details="R511"' in (reply.header("proxy-status") or "")
            assert not s.upstream.requests
        else:
            assert s.app.stores.decisions.stats()["owed"] == 1
        holder.execute("ROLLBACK")
    if not holds_key:
        assert holder.execute("SELECT batch FROM tickets WHERE batch IS NOT NULL").fetchall() == [("msgbatch_1",)]
    holder.close()

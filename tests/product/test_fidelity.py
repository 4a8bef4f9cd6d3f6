"""Bytes in, bytes out: the upstream gets the client's bytes but for the model, the client the upstream's bytes."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

import pytest
from kit.live import REPOSITORY, program
from kit.recording import Client, RecordingUpstream
from kit.varied import bodies, labelled, spelled

# Spelled so that any re-serialisation would show: order, blanks, escapes, long numbers, unknown fields.
PLAIN = rb"""{ "usage" : {"output_tokens":3, "input_tokens": 7,"novel_count": 1e2 } , "id":"msg_NONCE",
 "type":"message","role":"assistant","model":"claude-x","content":[{"type":"text","text":"gr\u00fcn \/ NONCE"}],
 "stop_reason":"end_turn","stop_sequence":null,"score":0.10000000000000000001,"later":{"b":1,"a":2}}
"""
STREAM = (
    b'event: message_start\ndata: {"type":"message_start", "message":{"id":"msg_NONCE","model":"claude-x",'
    b'"usage":{"input_tokens":7,"output_tokens":1},"content":[],"stop_reason":null}}\n\n'
    b": a comment\n\nevent: ping\ndata: {}\n\n"
    b'event: content_block_start\ndata: {"type":"content_block_start","index":0,"content_block":{"type":"text"}}\n\n'
    b'event: content_block_delta\r\ndata: {"type":"content_block_delta","delta":{"text":"gr\xc3\xbcn"}}\r\n\r\n'
    b'event: never_heard_of\ndata: {"type":"never_heard_of"}\n\n'
    b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"},'
    b'"usage":{"output_tokens":3}}\n\nevent: message_stop\ndata: {"type":"message_stop"}\n\n'
)


@pytest.mark.anyio
async def test_a_thousand_requests_cross_unchanged(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Each sent plain and streamed; with `--requests FILE` every labelled request of the file instead of the sample."""
    file = request.config.getoption("--requests")
    found = list(labelled(Path(file)) if file else bodies(seed=20261122, count=1000))
    dice = random.Random(1)
    jobs = [
        (f"{number}-{form}".encode(), {**body, "stream": form == "stream"}, form)
        for number, body in enumerate(found)
        for form in ("plain", "stream")
    ]
    upstream = RecordingUpstream(PLAIN, STREAM)
    moved = 0
    async with upstream.running():
        arguments = ["--upstream", upstream.address, "--policies", str(REPOSITORY / "policies"), "--traces", "off"]
        with program("serve", "--port", "0", "--admin-port", "0", *arguments, cwd=tmp_path) as router:
            queue = iter(jobs)

            async def one_after_another() -> int:
                client = await Client.to(router["api"])
                count = 0
                for nonce, body, form in queue:
                    count += await crosses(client, upstream, nonce, spelled(body, dice), form)
                await client.close()
                return count

            moved = sum(await asyncio.gather(*(one_after_another() for _ in range(8))))
    assert len(upstream.seen) == len(jobs)
    assert moved > len(jobs) // 20, "the sample must hold requests whose model is replaced"


async def crosses(client: Client, upstream: RecordingUpstream, nonce: bytes, sent: bytes, form: str) -> bool:
    """Send one request and compare both directions; whether its model was replaced."""
    headers = {"x-api-key": "sk-test", "anthropic-version": "2023-06-01", "x-nonce": nonce.decode(), "x-wants": form}
    answer = await client.post("/v1/messages", sent, {**headers, "x-router-cache": "no-store"})
    assert answer.status == 200, answer
    got = upstream.seen[nonce].body
    assert answer.body == upstream.sent[nonce]
    if got == sent:
        return False
    asked, used = (json.dumps(json.loads(body)["model"]).encode() for body in (sent, got))
    assert used == json.dumps(answer.header(b"x-router-model").decode()).encode()
    places = [at for at in range(len(sent)) if sent.startswith(asked, at) and sent[:at] == got[:at]]
    assert any(sent[at + len(asked) :] == got[at + len(used) :] for at in places), (sent, got)
    return True

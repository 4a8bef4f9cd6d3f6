"""Where a batch's `results_url` leads: back through whatever stands in front of the router."""

from __future__ import annotations

import json

import pytest
from kit.stage import AS_ASKED, answers, http, stage

pytestmark = pytest.mark.anyio

PATH = "/v1/messages/batches/msgbatch_1"
BATCH = {"id": "msgbatch_1", "type": "message_batch", "results_url": f"https://api.anthropic.com{PATH}/results"}


@pytest.mark.parametrize(
    ("public_url", "prefix", "expected"),
    [
        (None, "", "http://router.internal:8080"),
        (None, "/p/haiku", "http://router.internal:8080/p/haiku"),
        ("https://router.example", "", "https://router.example"),
        ("https://router.example/", "/p/haiku", "https://router.example/p/haiku"),
        ("https://example/llm/", "/p/haiku", "https://example/llm/p/haiku"),
    ],
)
async def test_results_are_fetched_by_the_base_url_that_the_client_has(public_url, prefix, expected):
    """The public URL where there is one, else the request's own origin; and the policy of its base URL stays."""
    body = json.dumps({"data": [BATCH], "has_more": False}, indent=1)
    async with stage(answers(http(body.encode())), policies={"haiku": AS_ASKED}, public_url=public_url) as s:
        reply = await s.request("GET", prefix + PATH, host=b"router.internal:8080")
        assert reply.body.decode() == body.replace("https://api.anthropic.com", expected)

"""What routing a large Message Batch costs: time, memory, requests that go on meanwhile, and whether the books agree.

    python -m bench.batches [--items 100000] [--chars 2300] [--json]

The router as an installed program with the shipped policies, and an upstream that takes the batch and answers with
results of known usage. A batch of `--items` items that all ask for Sonnet, each with a text of `--chars` characters, is
created through the router; then its results are fetched. Meanwhile a plain request goes through the router every 10 ms,
as it did for three seconds before, alone. Prints seconds, CPU per item, the router's resident memory before and at its
highest beside the size of the body, the latency of the plain requests, and the sums of the ledger. Exit status 1 when a
byte but of a model changed, an item is missing, or cost or baseline differ from what the upstream's usage comes to.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sqlite3
import sys
import tempfile
from collections.abc import Coroutine
from contextlib import closing, suppress
from pathlib import Path
from time import perf_counter
from typing import Any

from bench.batch_results import plain, quantile_ms, told
from bench.processes import Server, cpu_s, resident_bytes, router
from router.catalog.lookup import Catalog
from router.catalog_file import load_catalog
from router.usage import Tokens, Usage

BATCHES = b"/v1/messages/batches"
ASKED, CHEAP = "claude-sonnet-5-5", "claude-haiku-5-5"
ALONE_S = 3.0
EASY = "Classify this support ticket as billing, technical or account. Ticket {0}: I cannot log in after resetting it. "
HARD = "Prove step by step that the sum of two odd squares {0} is never a square, and derive the general theorem. "
USAGE = {"input_tokens": 400, "output_tokens": 150, "service_tier": "batch"}


def batch_body(items: int, chars: int) -> bytes:
    """The batch, as a client library writes it; every fourth item is hard."""
    parts = []
    for number in range(items):
        text = (HARD if number % 4 == 3 else EASY).format(number)
        params = {"model": ASKED, "max_tokens": 300, "messages": [{"role": "user", "content": text.ljust(chars, "x")}]}
        parts.append(json.dumps({"custom_id": f"item-{number}", "params": params}, separators=(",", ":")))
    return ('{"requests":[' + ",".join(parts) + "]}").encode()


class BatchUpstream:
    """Takes a batch, keeps its body, and answers with results; POSTs to Messages get a small answer."""

    def __init__(self) -> None:
        self.body = bytearray()
        self.models: list[str] = []  # of the items, as they came here
        self.port = 0

    async def start(self) -> asyncio.Server:
        """Listen on a free port."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 20)
        self.port = server.sockets[0].getsockname()[1]
        return server

    def look(self) -> None:
        """Read what came: not in the event loop, where it would hold up those whose waits are measured."""
        self.models = [item["params"]["model"] for item in json.loads(self.body)["requests"]]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/%b\r\n%b\r\n\r\n"
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                asked = await reader.readuntil(b"\r\n\r\n")
                if asked.startswith(b"POST"):
                    rows = asked.lower().split(b"\r\n")
                    length = next(int(row[15:]) for row in rows if row[:15] == b"content-length:")
                    body = bytearray()
                    while len(body) < length:
                        body += await reader.read(min(1 << 20, length - len(body)))
                    answer = _message("msg_0", CHEAP)
                    if asked.split()[1] == BATCHES:
                        self.body = body
                        answer = b'{"id":"msgbatch_bench","type":"message_batch"}'
                    writer.write(head % (b"json", b"content-length: %d" % len(answer)) + answer)
                else:
                    writer.write(head % (b"x-jsonl", b"transfer-encoding: chunked"))
                    for number, model in enumerate(self.models):
                        line = b'{"custom_id":"item-%d","result":{"type":"succeeded","message":%b}}\n' % (
                            number, _message(f"msg_{number}", model),
                        )  # fmt: skip
                        writer.write(b"%x\r\n%b\r\n" % (len(line), line))
                        await writer.drain()
                    writer.write(b"0\r\n\r\n")
                await writer.drain()
        writer.close()


def _message(name: str, model: str) -> bytes:
    message = {"id": name, "type": "message", "role": "assistant", "model": model, "stop_reason": "end_turn",
               "content": [{"type": "text", "text": "billing"}], "usage": USAGE}  # fmt: skip
    return json.dumps(message).encode()


async def created(port: int, body: bytes) -> tuple[int, dict[str, str]]:
    """Send the batch → status and headers of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST %b HTTP/1.1\r\nhost: bench\r\nx-api-key: sk-bench\r\n" % BATCHES)
    writer.write(b"anthropic-version: 2023-06-01\r\ncontent-length: %d\r\n\r\n" % len(body))
    for at in range(0, len(body), 1 << 20):
        writer.write(body[at : at + (1 << 20)])
        await writer.drain()
    first, *rows = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    writer.close()
    return int(first.split()[1]), dict(row.split(": ", 1) for row in rows if row)


async def fetched(port: int) -> int:
    """Fetch the results → how many bytes they are."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET %b/msgbatch_bench/results HTTP/1.1\r\nhost: bench\r\nx-api-key: sk-bench\r\n\r\n" % BATCHES)
    await reader.readuntil(b"\r\n\r\n")
    size = 0
    while length := int(await reader.readuntil(b"\r\n"), 16):
        await reader.readexactly(length + 2)
        size += length
    writer.close()
    return size


async def watched(server: Server, port: int, what: Coroutine[Any, Any, Any]) -> tuple[Any, dict[str, float]]:
    """What `what` gives, with seconds, CPU, highest resident memory and the waits of plain requests meanwhile."""
    waits_s: list[float] = []
    others = asyncio.create_task(plain(port, waits_s))
    cpu, started, most = cpu_s(server.pid), perf_counter(), 0
    task = asyncio.create_task(what)
    while not task.done():
        most = max(most, resident_bytes(server.pid))
        await asyncio.wait([task], timeout=0.02)
    took = perf_counter() - started
    others.cancel()
    return task.result(), {
        "s": took, "cpu_s": cpu_s(server.pid) - cpu, "most_mb": most / 1e6,
        **{f"plain_p{int(q * 100)}_ms": quantile_ms(waits_s, q) for q in (0.5, 0.99)},
        "plain_most_ms": max(waits_s, default=0.0) * 1_000,
    }  # fmt: skip


def expected(catalog: Catalog, models: list[str]) -> tuple[int, int]:
    """Cost and baseline in pico-dollars of the results, from the prices."""
    usage = Usage(Tokens(USAGE["input_tokens"], 0, 0, 0, USAGE["output_tokens"]))  # type: ignore[arg-type]  # numbers of JSON
    cost = {model: catalog.cost(usage, model, is_batch=True) or 0 for model in set(models)}
    return sum(cost[model] for model in models), (catalog.cost(usage, ASKED, is_batch=True) or 0) * len(models)


async def measured(items: int, chars: int, folder: Path) -> dict[str, float]:
    """All of it: the figures by name."""
    body = batch_body(items, chars)
    upstream = BatchUpstream()
    server = await upstream.start()
    with router(f"http://127.0.0.1:{upstream.port}", folder) as under_test:
        api = int(under_test.url.rpartition(":")[2])
        alone_s: list[float] = []
        others = asyncio.create_task(plain(api, alone_s))
        await asyncio.sleep(ALONE_S)
        others.cancel()
        before = resident_bytes(under_test.pid)
        (status, headers), making = await watched(under_test, api, created(api, body))
        await asyncio.to_thread(upstream.look)
        models = upstream.models
        is_same = upstream.body.replace(CHEAP.encode(), ASKED.encode()) == body
        _, fetching = await watched(under_test, api, fetched(api))
        figures = await asyncio.to_thread(told, under_test)
        with closing(sqlite3.connect(folder / "router.db")) as connection:
            rows, cost, baseline, moved = connection.execute(
                "SELECT count(*), sum(cost_pusd), sum(baseline_pusd), sum(model_asked != model_sent) FROM traces"
                " WHERE endpoint = 'batch_item'"
            ).fetchone()
        kept = sum(path.stat().st_size for path in folder.glob("router-jobs.db*"))  # noqa: ASYNC240 - nothing else runs
    server.close()
    is_booked = (cost, baseline) == expected(load_catalog(None), models) and rows == items == len(models)
    print(f"bench: {status}, {headers.get('x-router-model')}, {headers.get('x-router-rule')}", file=sys.stderr)
    return {
        "items": items,
        "body_mb": round(len(body) / 1e6, 1),
        "before_mb": round(before / 1e6, 1),
        "items_per_s": round(items / making["s"]),
        "cpu_us_per_item": round(making["cpu_s"] / items * 1e6),
        "over_body": round((making["most_mb"] * 1e6 - before) / len(body), 2),
        **{f"make_{name}": round(value, 2) for name, value in making.items()},
        **{f"fetch_{name}": round(value, 2) for name, value in fetching.items()},
        "alone_plain_p50_ms": round(quantile_ms(alone_s, 0.5), 2),
        "alone_plain_p99_ms": round(quantile_ms(alone_s, 0.99), 2),
        "decisions_mb": round(kept / 1e6, 1),
        "moved": moved or 0,
        "dropped": figures["dropped"],
        "is_unchanged": float(is_same),
        "is_booked": float(is_booked),
    }


def main() -> None:
    """Run it, print it, and say by the exit status whether bytes and books are right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--chars", type=int, default=2_300)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        found = asyncio.run(measured(options.items, options.chars, Path(folder)))
    if options.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:24} {value:>12,}")
    sys.exit(0 if found["is_unchanged"] and found["is_booked"] and not found["dropped"] else 1)


if __name__ == "__main__":
    main()

"""What fetching the results of a large Message Batch costs: time, memory, and the requests that go on meanwhile.

    python -m bench.batch_results [--items 20000] [--chars 600] [--json]

The router as an installed program, and an upstream that answers with `--items` lines, each of an answer of `--chars`
characters. The results are fetched straight from the upstream, then twice through the router. Meanwhile a plain request
goes through the router every 10 ms, as it did for three seconds before, alone. Prints seconds and CPU, resident memory
of the router before and at its highest, the latency of the plain requests alone and during the fetches, and what the
store holds at the end. Exit status 1 when a byte was changed, or an item is missing, doubled or dropped.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sqlite3
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from time import perf_counter

from bench.processes import Server, cpu_s, resident_bytes, router

PATH = "/v1/messages/batches/msgbatch_bench/results"
MODEL = "claude-haiku-5-5"
ALONE_S = 3.0


def lines(items: int, chars: int) -> Iterator[bytes]:
    """The results, about 64 kB at a time."""
    usage = {"input_tokens": 400, "output_tokens": 150, "service_tier": "batch"}
    text = ("The quick brown fox jumps over the lazy dog. " * (chars // 45 + 1))[:chars]
    piece = bytearray()
    for number in range(items):
        message = {"id": f"msg_{number:08d}", "type": "message", "role": "assistant", "model": MODEL,
                   "content": [{"type": "text", "text": text}], "stop_reason": "end_turn", "stop_sequence": None,
                   "usage": usage}  # fmt: skip
        entry = {"custom_id": f"item-{number}", "result": {"type": "succeeded", "message": message}}
        piece += json.dumps(entry).encode() + b"\n"
        if len(piece) > 65_536:
            yield bytes(piece)
            piece.clear()
    yield bytes(piece)


@dataclass
class Fetch:
    """One fetch: seconds, bytes and their hash; of a router its CPU seconds and highest resident memory."""

    took_s: float
    size: int
    digest: str
    cpu_s: float = 0.0
    most_bytes: int = 0
    waits_s: list[float] = field(default_factory=list)  # of the plain requests meanwhile


async def upstream(pieces: list[bytes]) -> asyncio.Server:
    """Answers a GET with the results, in these pieces, and a POST with a small Message."""
    message = next(lines(1, 60))
    plain = json.dumps(json.loads(message)["result"]["message"]).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/%b\r\n%b\r\n\r\n"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                asked = await reader.readuntil(b"\r\n\r\n")
                if asked.startswith(b"POST"):
                    length = next(
                        int(row[15:]) for row in asked.lower().split(b"\r\n") if row[:15] == b"content-length:"
                    )
                    await reader.readexactly(length)
                    writer.write(head % (b"json", b"content-length: %d" % len(plain)) + plain)
                else:
                    writer.write(head % (b"x-jsonl", b"transfer-encoding: chunked"))
                    for piece in pieces:
                        writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                        await writer.drain()
                    writer.write(b"0\r\n\r\n")
                await writer.drain()
        writer.close()

    return await asyncio.start_server(serve, "127.0.0.1", 0)


async def fetched(port: int) -> Fetch:
    """The whole results."""
    started = perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {PATH} HTTP/1.1\r\nhost: bench\r\nx-api-key: sk-bench\r\n\r\n".encode())
    assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
    size, digest = 0, sha256()
    while length := int(await reader.readuntil(b"\r\n"), 16):
        data = await reader.readexactly(length + 2)
        size += length
        digest.update(data[:-2])
    writer.close()
    return Fetch(perf_counter() - started, size, digest.hexdigest())


async def plain(port: int, waits_s: list[float]) -> None:
    """A small request every 10 ms, one after the other, until cancelled."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    number = 0
    while True:
        number += 1
        body = {"model": MODEL, "max_tokens": 20, "messages": [{"role": "user", "content": f"Ticket {number}"}]}
        raw = json.dumps(body).encode()
        started = perf_counter()
        writer.write(
            b"POST /v1/messages HTTP/1.1\r\nhost: bench\r\nx-api-key: sk-bench\r\nanthropic-version: 2023-06-01\r\n"
            b"x-router-cache: no-store\r\ncontent-length: %d\r\n\r\n%b" % (len(raw), raw)
        )
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(row[15:]) for row in head.lower().split(b"\r\n") if row[:15] == b"content-length:")
        await reader.readexactly(length)
        waits_s.append(perf_counter() - started)
        await asyncio.sleep(0.01)


async def watched(server: Server, port: int) -> Fetch:
    """A fetch through the router, with what it costs it and others."""
    waits_s: list[float] = []
    others = asyncio.create_task(plain(port, waits_s))
    before, most = cpu_s(server.pid), 0
    fetching = asyncio.create_task(fetched(port))
    while not fetching.done():
        most = max(most, resident_bytes(server.pid))
        await asyncio.wait([fetching], timeout=0.02)
    others.cancel()
    done = fetching.result()
    done.cpu_s, done.most_bytes, done.waits_s = cpu_s(server.pid) - before, most, waits_s
    return done


def told(server: Server) -> dict[str, float]:
    """The figures of the store, once nothing waits for it."""
    while True:
        with urllib.request.urlopen(f"{server.admin}/metrics", timeout=30) as answer:
            rows = [row for row in answer.read().decode().splitlines() if row.startswith("router_traces{")]
        figures = {row.split('"')[1]: float(row.split()[1]) for row in rows}
        if not figures["queued"]:
            return figures


def quantile_ms(waits_s: list[float], share: float) -> float:
    """Nearest rank, in milliseconds."""
    return sorted(waits_s)[min(len(waits_s) - 1, int(len(waits_s) * share))] * 1_000 if waits_s else 0.0


async def measured(items: int, chars: int, folder: Path) -> dict[str, float]:
    """All of it: the figures by name."""
    pieces = list(lines(items, chars))
    server = await upstream(pieces)
    port = server.sockets[0].getsockname()[1]
    direct = await fetched(port)
    with router(f"http://127.0.0.1:{port}", folder) as under_test:
        api = int(under_test.url.rpartition(":")[2])
        alone_s: list[float] = []
        others = asyncio.create_task(plain(api, alone_s))
        await asyncio.sleep(ALONE_S)
        others.cancel()
        before = resident_bytes(under_test.pid)
        first = await watched(under_test, api)
        figures = await asyncio.to_thread(told, under_test)
        second = await watched(under_test, api)
        figures = await asyncio.to_thread(told, under_test)
        with closing(sqlite3.connect(folder / "router.db")) as connection:
            booked = connection.execute("SELECT count(*) FROM traces WHERE endpoint = 'batch_item'").fetchone()[0]
    server.close()
    return {
        "items": items,
        "megabytes": round(direct.size / 1e6, 1),
        "is_unchanged": float(direct.digest == first.digest == second.digest),
        "direct_s": round(direct.took_s, 2),
        **{
            f"{name}_{figure}": round(value, 2)
            for name, fetch in (("first", first), ("second", second))
            for figure, value in (
                ("s", fetch.took_s),
                ("cpu_us_per_item", fetch.cpu_s / items * 1e6),
                ("most_mb", fetch.most_bytes / 1e6),
                ("plain_p50_ms", quantile_ms(fetch.waits_s, 0.5)),
                ("plain_p99_ms", quantile_ms(fetch.waits_s, 0.99)),
            )
        },
        "before_mb": round(before / 1e6, 2),
        "alone_plain_p50_ms": round(quantile_ms(alone_s, 0.5), 2),
        "alone_plain_p99_ms": round(quantile_ms(alone_s, 0.99), 2),
        "booked": booked,
        "repeated": figures["repeated"],
        "dropped": figures["dropped"],
        "thinned": figures["thinned"],
    }


def main() -> None:
    """Run it, print it, and say by the exit status whether the books are right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--chars", type=int, default=600)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        found = asyncio.run(measured(options.items, options.chars, Path(folder)))
    if options.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:24} {value:>12,}")
    is_right = found["is_unchanged"] == 1 and not found["dropped"]
    sys.exit(0 if is_right and found["booked"] == found["repeated"] == options.items else 1)


if __name__ == "__main__":
    main()

"""The policies folder rewritten again and again under load: no request may fail, none may see half a version.

    python -m bench.policy_swaps [--swaps 10000] [--rate 100] [--connections 4] [--json]

Starts a fake upstream and the router as an installed program, keeps requests coming, and writes version after version
of two files that belong together; the next one is written as soon as an answer shows that this one is live. Any mixture
of two versions compiles, so a mix would be served and seen: the revision in `x-router-policy` must be that of a whole
version, the rule and the model must be that version's. Exit status 1 when a request failed, a mix was seen or a version
was not live within a second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from urllib.parse import urlsplit

from bench.processes import HERE, LOAD_CORE, SERVER_CORE, started
from router.policy.check import revision_of

MODELS = ("claude-haiku-5-5", "claude-sonnet-5-5")
BOUND_S = 1.0
GIVE_UP_S = 10.0


def version(number: int) -> dict[str, bytes]:
    """The two files of a version: the rule is named after it, the lane's model depends on whether it is even."""
    lanes = f"version: 1\nlanes: {{it: {{model: {MODELS[number % 2]}}}}}\ndefault_lane: it\n"
    policy = f"version: 1\nrules:\n  - name: rule-{number}\n    route: it\notherwise: as-asked\n"
    return {"lanes.yaml": lanes.encode(), "default.yaml": policy.encode()}


def put(folder: Path, files: dict[str, bytes]) -> None:
    """Write each file beside and rename it, as editors do."""
    for name, data in files.items():
        (folder / f".{name}.new").write_bytes(data)
        os.replace(folder / f".{name}.new", folder / name)


@dataclass
class Seen:
    """What the answers showed. `numbers` is the version of each revision that may be seen."""

    numbers: dict[str, int] = field(default_factory=dict)
    requests: int = 0
    failed: int = 0
    mixed: int = 0
    live_s: list[float] = field(default_factory=list)
    late: int = 0
    awaited: int = -1
    is_live: asyncio.Event = field(default_factory=asyncio.Event)
    complaints: list[str] = field(default_factory=list)

    def note(self, status: int, headers: dict[str, str]) -> None:
        """Hold one answer against the version that it names."""
        self.requests += 1
        if status != 200:
            self.failed += 1
            self.complain(f"status {status}: {headers}")
            return
        number = self.numbers.get(headers.get("x-router-policy", "").rpartition("@")[2])
        rule, model = headers.get("x-router-rule"), headers.get("x-router-model")
        if number is None or rule != f"rule-{number}" or model != MODELS[number % 2]:
            self.mixed += 1
            self.complain(f"mixed: {headers.get('x-router-policy')}, {rule}, {model}")
        elif number == self.awaited:
            self.is_live.set()

    def complain(self, what: str) -> None:
        """Keep the first few complaints."""
        if len(self.complaints) < 5:
            self.complaints.append(what)


async def ask(url: str, seen: Seen, pause_s: float, stop: asyncio.Event) -> None:
    """Requests one after another over one connection, every `pause_s`."""
    parts = urlsplit(url)
    body = json.dumps({"model": "claude-opus-5-5", "max_tokens": 20, "messages": [{"role": "user", "content": "hi"}]})
    request = (
        f"POST /v1/messages HTTP/1.1\r\nhost: {parts.netloc}\r\nx-api-key: sk-bench\r\n"
        f"anthropic-version: 2023-06-01\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}"
    ).encode()
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    due = perf_counter()
    while not stop.is_set():
        try:
            writer.write(request)
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
            lines = head.decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
            await asyncio.wait_for(reader.readexactly(int(headers["content-length"])), 30)
            seen.note(int(lines[0].split()[1]), headers)
        except (OSError, EOFError, KeyError, TimeoutError) as error:
            seen.requests += 1
            seen.failed += 1
            seen.complain(f"{type(error).__name__}: {error}")
            writer.close()
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        due = max(due + pause_s, perf_counter() - pause_s)  # what was missed is not made up for in a burst
        await asyncio.sleep(max(0.0, due - perf_counter()))
    writer.close()


async def swap(url: str, folder: Path, swaps: int, rate: float, connections: int) -> Seen:
    """Write `swaps` versions under load, each once the one before is live."""
    seen, stop = Seen(), asyncio.Event()
    seen.numbers[revision_of(version(0))] = 0
    tasks = [asyncio.create_task(ask(url, seen, connections / rate, stop)) for _ in range(connections)]
    for number in range(1, swaps + 1):
        files = version(number)
        seen.numbers[revision_of(files)] = number
        seen.is_live.clear()
        seen.awaited = number
        put(folder, files)
        written_s = perf_counter()
        try:
            await asyncio.wait_for(seen.is_live.wait(), GIVE_UP_S)
            seen.live_s.append(perf_counter() - written_s)
        except TimeoutError:
            seen.late += 1
        if number % 100 == 0 and sys.stderr.isatty():
            print(f"\r{number:,} of {swaps:,}", end="", file=sys.stderr)
    stop.set()
    await asyncio.gather(*tasks)
    return seen


def main() -> int:
    """Read the command line, swap, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--swaps", type=int, default=10_000)
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second")
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="router-swaps-")))
        policies = folder / "policies"
        policies.mkdir()
        put(policies, version(0))
        fake = [sys.executable, str(HERE / "fake_upstream.py")]
        _, line = stack.enter_context(started(fake, LOAD_CORE, says="fake upstream", cwd=folder))
        command = [sys.executable, "-m", "router.cli.main", "serve", "--port", "0", "--admin-port", "0"]
        command += ["--upstream", line.split()[-1], "--policies", str(policies)]
        command += ["--traces", f"sqlite:///{folder / 'swaps.db'}"]
        command = ["sh", "-c", 'exec "$@" 2>router.log', "sh", *command]  # it logs a line per version
        _, line = stack.enter_context(started(command, SERVER_CORE, says="router: api ", cwd=folder))
        begun_s = perf_counter()
        seen = asyncio.run(swap(line.split()[2], policies, options.swaps, options.rate, options.connections))
        took_s = perf_counter() - begun_s
    ordered = sorted(seen.live_s) or [float("nan")]
    p50, p99 = (ordered[min(int(len(ordered) * part), len(ordered) - 1)] for part in (0.5, 0.99))
    is_slow = seen.late > 0 or ordered[-1] > BOUND_S
    figures = {
        "swaps": options.swaps,
        "seconds": round(took_s, 1),
        "requests": seen.requests,
        "failed": seen.failed,
        "mixed": seen.mixed,
        "never_live": seen.late,
        "live_p50_ms": round(p50 * 1000, 1),
        "live_p99_ms": round(p99 * 1000, 1),
        "live_max_ms": round(ordered[-1] * 1000, 1),
    }
    if options.json:
        print(json.dumps(figures))
    else:
        print(", ".join(f"{name} {value}" for name, value in figures.items()))
    for complaint in seen.complaints:
        print(complaint, file=sys.stderr)
    return 1 if seen.failed or seen.mixed or is_slow else 0


if __name__ == "__main__":
    sys.exit(main())

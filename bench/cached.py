"""What an answer from the cache costs: out of this process, or out of Redis, beside nginx passing a call on.

Three routers with the same settings but for the cache, so that each answers in one way only:

    memory       `memory://`: from this process
    near         `redis://…`: from this process's own copy, with Redis behind it
    redis        `redis://…?max_mb=1`: from Redis, each time; it takes turns at more answers than it has room for, which
                 `near` has asked for beforehand
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from bench.processes import SERVER_CORE, Server, cpu_s, load, pin, router
from bench.table import Row, ratio
from tests.kit.redis_server import RedisServer, find_redis_server

FEW = 100  # requests that take turns, where all answers have room
MANY = 2000  # far over a megabyte, so that the least recently used is always the one asked for next
RATE = 500.0  # requests a second
FORMS = {"plain": "", "stream": "burst"}


class Cached:
    """The routers, and what the rounds found; without a `redis-server` only `memory`."""

    def __init__(self, upstream: str, folder: Path, stack: ExitStack) -> None:
        self.memory = stack.enter_context(router(upstream, folder, "memory"))
        self.shared: list[Server] = []
        program = find_redis_server()
        if program is not None:
            self.store = RedisServer(program, folder)
            self.store.start()
            stack.callback(self.store.kill)
            self.store_pid = int(self.info("process_id"))
            pin(self.store_pid, SERVER_CORE)
            for name, options in (("near", ""), ("redis", "?max_mb=1")):
                self.shared.append(stack.enter_context(router(upstream, folder, name, cache=self.store.url + options)))

    def fill(self) -> None:
        """Ask for all that will be asked for again."""
        for form in FORMS.values():
            load(self.memory, repeat=FEW, requests=FEW, connections=16, seconds=30, stream=form)
            for server in self.shared[:1]:
                load(server, repeat=MANY, requests=MANY, connections=16, seconds=30, stream=form)

    def one_round(self, plain: Server | None, seconds: float) -> None:
        """Every figure once, the servers taking turns at each."""
        servers = [(plain, 0), (self.memory, FEW), *zip(self.shared, (FEW, MANY), strict=False)]
        for form, stream in FORMS.items():
            for rate in (0, RATE):
                for server, repeat in servers:
                    if server is not None:
                        self.measure(server, seconds, form, stream, rate, repeat)

    def measure(self, server: Server, seconds: float, form: str, stream: str, rate: float, repeat: int) -> None:
        """One run of load: CPU where it is as fast as it goes, time to the first byte where it has a rate."""
        is_shared = server in self.shared
        store_cpu_s = cpu_s(self.store_pid) if is_shared else 0.0
        run = load(server, seconds=seconds, connections=32, rate=rate, stream=stream, repeat=repeat or MANY)
        if rate:
            server.note(f"{form}_p50_ms", run["ttft_p50_ms"])
            server.note(f"{form}_p99_ms", run["ttft_p99_ms"])
        else:
            server.note(f"{form}_cpu_us", run["cpu_s"] / run["requests"] * 1e6)
            server.note(f"{form}_per_second", run["per_second"])
        if is_shared and not rate:
            server.note(f"{form}_store_us", (cpu_s(self.store_pid) - store_cpu_s) / run["requests"] * 1e6)
        if repeat:
            server.note("hits", run["hits"] / run["requests"] * 100)

    def rows(self, plain: Server | None) -> list[Row]:
        """The table."""
        lines: list[Row] = []
        ours = [self.memory, *self.shared]
        for form in FORMS:
            for figure, name in (
                ("cpu_us", f"CPU per {form} answer, µs"),
                ("per_second", f"{form} answers a second, closed loop"),
                ("p50_ms", f"TTFT, {form}, at {RATE:g}/s, p50, ms"),
                ("p99_ms", f"TTFT, {form}, at {RATE:g}/s, p99, ms"),
            ):
                base = plain.median(f"{form}_{figure}") if plain else None
                for server in ours:
                    value = server.median(f"{form}_{figure}")
                    times = None if figure == "per_second" else ratio(value, base)
                    lines.append(Row(f"{name}: {server.name}", value, base, times, "x"))
            lines += [
                Row(f"CPU of Redis per {form} answer, µs: {server.name}", server.median(f"{form}_store_us"))
                for server in self.shared
            ]
        return lines + [Row(f"hits, least of a run, %: {each.name}", min(each.figures["hits"])) for each in ours]

    def info(self, name: str) -> str:
        """A line of what Redis says of itself."""
        text = self.store.say("INFO", "server").decode()
        return next(line.partition(":")[2] for line in text.splitlines() if line.startswith(f"{name}:"))

"""What the router costs, beside a plain nginx doing the least a proxy can do: what `make bench` runs.

    python -m bench.run [--seconds 2] [--rounds 3] [--cached] [--json]

Starts a fake upstream, nginx (where there is one) and the router as an installed program, with routing, cache look-up
and traces on; drives them in interleaved rounds; prints medians beside the budget. `bench/README.md` says how to read
it. Exit status 0, or 1 when an answer was wrong: a slow machine is not an error.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
LOAD_CORE, SERVER_CORE = 0, 1
PACED_RATE = 20.0  # streams a second
LATENCY_RATE = 500.0  # requests a second
HELD_STREAMS = 200  # open at once while memory is looked at


@dataclass
class Server:
    """A process under test, and what the rounds found: figure name to one value per round."""

    name: str
    url: str
    pid: int
    figures: dict[str, list[float]] = field(default_factory=dict)
    errors: int = 0

    def note(self, figure: str, value: float) -> None:
        """Add one round's value."""
        self.figures.setdefault(figure, []).append(value)

    def median(self, figure: str) -> float | None:
        """The median of the rounds, or None where the figure was not measured."""
        values = self.figures.get(figure)
        return median(values) if values else None


def pin(process: subprocess.Popen[str], core: int) -> None:
    """Keep the process on one core, where the system can and the machine has that core."""
    if hasattr(os, "sched_setaffinity") and core in os.sched_getaffinity(0):
        os.sched_setaffinity(process.pid, {core})


def cpu_s(pid: int) -> float:
    """Seconds of CPU that the process has used in all its threads, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    """Resident memory of the process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def started(command: list[str], core: int, *, says: str, cwd: Path) -> Iterator[tuple[int, str]]:
    """Run a program until the context ends; yields its pid and the first line with `says`."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("ROUTER_", "OTEL_"))}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=cwd, env=environment) as process:
        pin(process, core)
        try:
            line = ""
            while says and says not in line:
                line = process.stdout.readline() if process.stdout else ""
                if not line:
                    raise SystemExit(f"bench: `{' '.join(command)}` ended before it served")
            yield process.pid, line.strip()
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


@contextmanager
def nginx(upstream: str, folder: Path) -> Iterator[Server | None]:
    """A plain nginx before `upstream`; None where nginx is not installed."""
    program = shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))
    if program is None:
        yield None
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    text = (HERE / "nginx.conf").read_text()
    for name, value in {"FOLDER": str(folder), "PORT": str(port), "UPSTREAM": upstream.removeprefix("http://")}.items():
        text = text.replace(f"@{name}@", value)
    (folder / "nginx.conf").write_text(text)
    command = [program, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"]
    with started(command, SERVER_CORE, says="", cwd=folder) as (pid, _):
        url = f"http://127.0.0.1:{port}"
        wait_until_open(port)
        yield Server("nginx", url, pid)


def wait_until_open(port: int) -> None:
    """Return once something listens on the port; give up after a few seconds of trying."""
    for _ in range(200):
        with socket.socket() as probe:
            probe.settimeout(0.05)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        threading.Event().wait(0.02)
    raise SystemExit(f"bench: nothing listens on port {port}")


@contextmanager
def router(upstream: str, folder: Path) -> Iterator[Server]:
    """The router before `upstream`, as a user runs it: policies, memory cache, SQLite traces."""
    command = [sys.executable, "-m", "router.cli.main", "serve", "--port", "0", "--admin-port", "0"]
    command += ["--upstream", upstream, "--policies", str(HERE.parent / "policies")]
    command += ["--traces", f"sqlite:///{folder / 'bench.db'}"]
    with started(command, SERVER_CORE, says="router: api ", cwd=folder) as (pid, line):
        yield Server("router", line.split()[2], pid)


def load(server: Server, **options: Any) -> dict[str, float]:
    """One run of `bench/load.py` against the server; its figures, with the server's CPU seconds as `cpu_s`."""
    command = [sys.executable, str(HERE / "load.py"), server.url]
    for name, value in options.items():
        command += [f"--{name}"] if value is True else [f"--{name}", str(value)] if value else []
    before = cpu_s(server.pid)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        pin(process, LOAD_CORE)
        output, complaint = process.communicate(timeout=120)
    if process.returncode:
        raise SystemExit(f"bench: the load on {server.name} failed\n{complaint}")
    result: dict[str, float] = json.loads(output)
    result["cpu_s"] = cpu_s(server.pid) - before
    server.errors += int(result["errors"])
    return result


def one_round(servers: list[Server], direct: Server, seconds: float, *, is_cached: bool) -> None:
    """Every figure once, the servers taking turns at each."""
    for server in servers:
        run = load(server, seconds=seconds, connections=32, cached=is_cached)
        server.note("plain_cpu_us", run["cpu_s"] / run["requests"] * 1e6)
        server.note("plain_per_second", run["per_second"])
    for server in [direct, *servers]:
        run = load(server, seconds=seconds, connections=32, rate=LATENCY_RATE, cached=is_cached)
        server.note("p50_ms", run["p50_ms"])
        server.note("p99_ms", run["p99_ms"])
    for server in servers:
        run = load(server, seconds=seconds + 1, connections=128, rate=PACED_RATE, stream="paced")
        server.note("stream_cpu_ms", run["cpu_s"] / run["requests"] * 1e3)
    for server in servers:
        run = load(server, seconds=seconds, connections=16, stream="burst")
        server.note("burst_cpu_us", run["cpu_s"] / run["requests"] * 1e6)
        server.note("burst_events_per_second", run["per_second"] * 106)


def look_at_memory(server: Server) -> None:
    """Resident bytes per stream, with `HELD_STREAMS` of them open and arriving slowly."""
    load(server, seconds=0.25, connections=10, rate=40, stream="paced")  # what the first streams load once
    before = peak = resident_bytes(server.pid)
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.05):
            peak = max(peak, resident_bytes(server.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    load(server, seconds=0.25, connections=HELD_STREAMS, rate=HELD_STREAMS * 4, stream="paced")
    done.set()
    watcher.join()
    server.note("stream_kb", (peak - before) / HELD_STREAMS / 1024)


def route_taken(server: Server) -> dict[str, str]:
    """One request as the load sends it: the `x-router-*` headers of its answer, to show that all parts were on."""
    prompt = "Classify this support ticket as billing, technical or account. Ticket: " + "the app fails. " * 115
    body = {"model": "claude-sonnet-5-5", "max_tokens": 200, "messages": [{"role": "user", "content": prompt}]}
    headers = {"content-type": "application/json", "x-api-key": "sk-bench", "anthropic-version": "2023-06-01"}
    request = urllib.request.Request(f"{server.url}/v1/messages", json.dumps(body).encode(), headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=10) as answer:
        return {name: value for name, value in answer.headers.items() if name.startswith("x-router-")}


@dataclass
class Row:
    """One line of the table; a verdict where there is a budget."""

    figure: str
    router: float | None
    nginx: float | None = None
    value: float | None = None  # what the budget is about: a ratio, or milliseconds added
    unit: str = ""
    at_least: float | None = None
    aim: float | None = None

    @property
    def verdict(self) -> str:
        """Where the value lies in the budget."""
        if self.value is None or self.at_least is None or self.aim is None:
            return ""
        return "aim met" if self.value <= self.aim else "met" if self.value <= self.at_least else "OVER"


def rows(router_: Server, nginx_: Server | None, direct: Server, start_mb: float) -> list[Row]:
    """The table; the budget is that of the project's performance page."""

    def both(figure: str) -> tuple[float | None, float | None]:
        return router_.median(figure), nginx_.median(figure) if nginx_ else None

    def ratio(pair: tuple[float | None, float | None]) -> float | None:
        return pair[0] / pair[1] if pair[0] is not None and pair[1] else None

    def added(figure: str, server: Server | None) -> float | None:
        value, base = server.median(figure) if server else None, direct.median(figure)
        return value - base if value is not None and base is not None else None

    plain, stream, burst = both("plain_cpu_us"), both("stream_cpu_ms"), both("burst_cpu_us")
    return [
        Row("CPU per plain request, µs", *plain, ratio(plain), "x", 12, 6),
        Row("plain requests a second, closed loop", *both("plain_per_second")),
        Row("CPU per paced stream of 106 events, ms", *stream, ratio(stream), "x", 3, 2),
        Row("CPU per burst of 106 events, µs", *burst, ratio(burst), "x"),
        Row("events a second in bursts", *both("burst_events_per_second")),
        *(
            Row(
                f"latency added at {LATENCY_RATE:g}/s, {name}, ms",
                added(figure, router_),
                added(figure, nginx_),
                added(figure, router_),
                " ms",
                at_least,
                aim,
            )
            for name, figure, at_least, aim in (("p50", "p50_ms", 1, 0.4), ("p99", "p99_ms", 5, 2))
        ),
        Row("resident memory at start, MB", start_mb, None, start_mb, " MB", 120, 50),
        Row("resident memory per open stream, kB", *both("stream_kb"), router_.median("stream_kb"), " kB", 60, 20),
    ]


def table(lines: list[Row]) -> str:
    """The rows as text."""

    def shown(value: float | None, unit: str = "") -> str:
        if value is None:
            return "-"
        return f"{value:,.0f}{unit}" if abs(value) >= 1000 else f"{value:.3g}{unit}"

    head = ("", "router", "nginx", "measured", "at least", "aim", "")
    cells = [
        (
            row.figure,
            shown(row.router),
            shown(row.nginx),
            shown(row.value, row.unit),
            shown(row.at_least, row.unit),
            shown(row.aim, row.unit),
            row.verdict,
        )
        for row in lines
    ]
    widths = [max(len(line[column]) for line in [head, *cells]) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in (0, 6) else cell.rjust(width) for column, (cell, width) in pairs
        ).rstrip()
        for pairs in (list(enumerate(zip(line, widths, strict=True))) for line in [head, *cells])
    )


def main() -> int:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cached", action="store_true", help="repeat a hundred requests, so that most are cache hits")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="router-bench-")))
        fake = [sys.executable, str(HERE / "fake_upstream.py")]
        pid, line = stack.enter_context(started(fake, LOAD_CORE, says="fake upstream", cwd=folder))
        direct = Server("direct", line.split()[-1], pid)
        plain = stack.enter_context(nginx(direct.url, folder))
        ours = stack.enter_context(router(direct.url, folder))
        start_mb = resident_bytes(ours.pid) / 2**20
        servers = [plain, ours] if plain else [ours]
        headers = route_taken(ours)
        for server in servers:  # first, while no heap has grown by earlier load
            look_at_memory(server)
        for server in servers:
            load(server, seconds=0.3, connections=32)  # warm
        for number in range(options.rounds):
            if not options.json:
                print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
            one_round(servers, direct, options.seconds, is_cached=options.cached)
    lines = rows(ours, plain, direct, start_mb)
    errors = {server.name: server.errors for server in [direct, *servers]}
    if options.json:
        figures = [{**vars(row), "verdict": row.verdict} for row in lines]
        print(json.dumps({"rows": figures, "errors": errors, "route": headers, "rounds": options.rounds}, indent=2))
    else:
        mode = "repeated requests" if options.cached else "every request different"
        print(f"{os.cpu_count()} cores; medians of {options.rounds} rounds of {options.seconds:g} s; {mode}")
        print(
            "one answer of the router: " + ", ".join(f"{name[9:]} {value}" for name, value in sorted(headers.items()))
        )
        print(f"load average at the end: {os.getloadavg()[0]:.1f} (this run alone makes about 2)")
        if plain is None:
            print("nginx is not installed: ratios cannot be given (Debian: `apt-get install nginx-light`)")
        print(table(lines))
        if any(errors.values()):
            print(f"wrong answers: {errors}", file=sys.stderr)
    return 1 if any(errors.values()) else 0


if __name__ == "__main__":
    sys.exit(main())

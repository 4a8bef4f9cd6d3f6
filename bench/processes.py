"""The processes of a benchmark: the programs under test, started and pinned, and the load that is put on them."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
LOAD_CORE, SERVER_CORE = 0, 1


@dataclass
class Server:
    """A process under test, and what the rounds found: figure name to one value per round."""

    name: str
    url: str
    pid: int
    admin: str = ""
    figures: dict[str, list[float]] = field(default_factory=dict)
    errors: int = 0

    def note(self, figure: str, value: float) -> None:
        """Add one round's value."""
        self.figures.setdefault(figure, []).append(value)

    def median(self, figure: str) -> float | None:
        """The median of the rounds, or None where the figure was not measured."""
        values = self.figures.get(figure)
        return median(values) if values else None


def pin(pid: int, core: int) -> None:
    """Keep the process on one core, where the system can and the machine has that core."""
    if hasattr(os, "sched_setaffinity") and core in os.sched_getaffinity(0):
        os.sched_setaffinity(pid, {core})


def cpu_s(pid: int) -> float:
    """Seconds of CPU that the process has used in all its threads, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    """Resident memory of the process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def started(
    command: list[str], core: int, *, says: str, cwd: Path, hear: Callable[[str], None] | None = None
) -> Iterator[tuple[int, str]]:
    """Run a program until the context ends; yields its pid and the first line with `says`.

    `hear` is given each line of its stderr as it comes, in a thread of its own; without it they go to ours.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("ROUTER_", "OTEL_"))}
    stderr = subprocess.PIPE if hear else None
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=stderr, text=True, cwd=cwd, env=environment
    ) as process:
        pin(process.pid, core)
        listening = threading.Thread(target=_listen, args=(process, hear), daemon=True)
        if hear:
            listening.start()
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
            if hear:
                listening.join()


def _listen(process: subprocess.Popen[str], hear: Callable[[str], None] | None) -> None:
    for line in process.stderr or ():
        if hear is not None:
            hear(line.rstrip())


@contextmanager
def nginx(upstream: str, folder: Path, hear: Callable[[str], None] | None = None) -> Iterator[Server | None]:
    """A plain nginx before `upstream`; None where nginx is not installed. `hear` is as for `started`."""
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
    with started(command, SERVER_CORE, says="", cwd=folder, hear=hear) as (pid, _):
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
def router(
    upstream: str, folder: Path, name: str = "router", *, hear: Callable[[str], None] | None = None, **settings: str
) -> Iterator[Server]:
    """The router before `upstream`, as a user runs it: policies, memory cache, SQLite traces.

    `settings` are more of its settings. Its files are in `folder` and named after it.
    """
    given = {"traces": f"sqlite:///{folder / name}.db", "policy_history": "off", **settings}
    config = folder / f"{name}.yaml"
    config.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in given.items()))
    command = [sys.executable, "-m", "router.cli.main", "serve", "--config", str(config), "--port", "0"]
    command += ["--admin-port", "0", "--upstream", upstream, "--policies", str(HERE.parent / "policies")]
    with started(command, SERVER_CORE, says="router: api ", cwd=folder, hear=hear) as (pid, line):
        yield Server(name, line.split()[2], pid, line.split()[4])


def load(server: Server, **options: Any) -> dict[str, float]:
    """One run of `bench/load.py` against the server; its figures, with the server's CPU seconds as `cpu_s`."""
    command = [sys.executable, str(HERE / "load.py"), server.url]
    for name, value in options.items():
        command += [f"--{name}"] if value is True else [f"--{name}", str(value)] if value else []
    before = cpu_s(server.pid)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        pin(process.pid, LOAD_CORE)
        output, complaint = process.communicate(timeout=120)
    if process.returncode:
        raise SystemExit(f"bench: the load on {server.name} failed\n{complaint}")
    result: dict[str, float] = json.loads(output)
    result["cpu_s"] = cpu_s(server.pid) - before
    server.errors += int(result["errors"])
    return result

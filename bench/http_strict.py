"""How many requests that must be refused are: our protocol beside bare uvicorn with each of its parsers.

    python -m bench.http_strict [--json]

Sends every case of the suite's table, and a well-formed request behind it, over a raw socket. Refused is a case that is
answered by one 4xx or 5xx and the end of the connection, or by the end alone. Each server runs the same application in
a process of its own. Exit status 1 when ours took one, or refused one of the odd requests that are lawful.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.processes import SERVER_CORE, started

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from kit.raw_client import RawClient, parse, request  # noqa: E402 - the table is the suite's
from kit.strict_cases import BODY, KEY, LENGTH, POST, REFUSED, SERVED, Case  # noqa: E402

SERVERS = ("ours", "uvicorn, httptools", "uvicorn, h11")
BEHIND = request(POST, *KEY, LENGTH, body=BODY)
LAST = request(POST, *KEY, LENGTH, b"connection: close", body=BODY)
WAIT_S = 1.0


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Takes the body, says ok."""
    while (await receive()).get("more_body", False):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def serve(name: str) -> None:
    """Run one of the servers; prints its port."""
    import uvicorn
    import uvloop

    from router.cli.serve import _listen, _server

    listener = _listen("port", "127.0.0.1", 0)
    if name == "ours":
        config = _server(application).config
    else:
        config = uvicorn.Config(application, http=name.split()[-1], lifespan="off", loop="none", log_level="critical")
    print("port", listener.getsockname()[1], flush=True)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(uvicorn.Server(config).serve(sockets=[listener]))


async def everything(port: int, data: bytes) -> tuple[bytes, bool]:
    """What comes back, and whether the server closed."""
    wire = await RawClient.open(port)
    await wire.say(data)
    parts: list[bytes] = []
    try:
        async with asyncio.timeout(WAIT_S):
            while piece := await wire.reader.read(1 << 16):
                parts.append(piece)
        is_closed = True
    except ConnectionError:
        is_closed = True
    except TimeoutError:
        is_closed = False
    await wire.close()
    return b"".join(parts), is_closed


async def is_refused(port: int, case: Case) -> bool:
    """Whether a case that must be refused was."""
    data, is_closed = await everything(port, case.data + BEHIND)
    try:
        answers = parse(data)
    except (AssertionError, ValueError, IndexError):
        return False
    return is_closed and len(answers) <= 1 and all(answer.status >= 400 for answer in answers)


async def is_served(port: int, case: Case) -> bool:
    """Whether a lawful case was, and the request behind it."""
    data, _ = await everything(port, case.data + LAST)
    return [answer.status for answer in parse(data) if answer.status >= 200] == [200, 200]


async def measure(port: int) -> dict[str, list[str]]:
    """The names of the cases that a server took wrongly, or refused wrongly."""
    return {
        "taken": [case.name for case in REFUSED if not await is_refused(port, case)],
        "refused": [case.name for case in SERVED if not await is_served(port, case)],
    }


def main() -> int:
    """Read the command line, start the servers, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return 0
    found = {}
    with ExitStack() as stack:
        for name in SERVERS:
            command = [sys.executable, "-m", "bench.http_strict", "--serve", name]
            _, line = stack.enter_context(started(command, SERVER_CORE, says="port ", cwd=ROOT))
            found[name] = asyncio.run(measure(int(line.split()[1])))
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        for name, wrong in found.items():
            right, lawful = len(REFUSED) - len(wrong["taken"]), len(SERVED) - len(wrong["refused"])
            print(f"{name:20} refused {right} of {len(REFUSED)}, served {lawful} of {len(SERVED)}")
            for kind, names in wrong.items():
                if names:
                    print(f"{'':20} wrongly {kind}: {', '.join(names)}")
    return 1 if any(found["ours"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())

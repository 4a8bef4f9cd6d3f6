"""`router demo`: the whole program in a minute, against the simulator; no key, no network, no cost.

The simulator and the router run as processes of their own, as they would in earnest; the workload goes through the
official SDK with nothing but its base URL changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import click

from router.cli.demo_workload import Errand, batch_items, first_errands, repeats, tool_turns, translation
from router.errors import RouterError

_START_S = 30.0  # a child process that has not printed its address by then has failed
_AT_ONCE = 8  # requests under way together
_COLUMNS = "{:27} {:14} {:16} {:>17} {:>17} {:8} {:>8} {:>11} {:>11}"


@click.command()
@click.option("--once", is_flag=True, help="end after the workload, also on a terminal")
@click.option("--latency", type=click.Choice(["real", "none"]), default="real", help="pace of the simulated models")
def demo(once: bool, latency: str) -> None:
    """Show the router at work, in front of a simulated API."""
    stays = sys.stdout.isatty() and not once
    for number in (signal.SIGTERM, signal.SIGHUP):  # the children are ours to end, also when the terminal closes
        signal.signal(number, signal.getsignal(signal.SIGINT))
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_run(latency, stays=stays))


async def _run(latency: str, *, stays: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="router-demo-") as folder:
        policies = Path(folder) / "policies"
        shutil.copytree(shipped_policies(), policies)
        async with (
            _child("simulate", "--port", "0", "--latency", latency) as simulator,
            _child(
                "serve", "--port", "0", "--admin-port", "0", "--upstream", simulator["simulator"],
                "--policies", str(policies), "--traces", f"sqlite:///{folder}/traces.db",
                ROUTER_POLICY_HISTORY=f"{folder}/history",
            ) as router,
        ):  # fmt: skip
            click.echo(
                f"The simulated API is at {simulator['simulator']}, the router in front of it at {router['api']}."
            )
            click.echo("The client is the official SDK; only its base URL was changed.\n")
            show = Show(router["api"], router["admin"])
            try:
                await show.day(policies / "default.yaml")
            finally:
                await show.close()
            click.echo(f"\nTrace page: {router['admin']}/")
            if stays:
                click.echo(f"Still serving: ANTHROPIC_BASE_URL={router['api']} (any key). Ctrl-C ends it.")
                await asyncio.Event().wait()


def shipped_policies() -> Path:
    """The folder of policies that comes with the program: in the package, or beside it in a checkout."""
    package = Path(__file__).parent.parent
    for folder in (package / "data" / "policies", package.parent / "policies"):
        if (folder / "default.yaml").is_file():
            return folder
    raise RouterError("the shipped policies are not there", hint="install the package again")


class Show:
    """One run of the workload: sends it, prints a row for each request, adds up."""

    def __init__(self, api: str, admin: str) -> None:
        import anthropic  # more than a second: `router --help` does not wait for it

        self._client = anthropic.AsyncAnthropic(base_url=api, api_key="demo-key", max_retries=2)
        self._admin = anthropic.AsyncAnthropic(base_url=admin, api_key="-", max_retries=0)
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._rows: list[dict[str, Any]] = []
        self._translated: list[dict[str, Any]] = []
        self._under_way = asyncio.Event()  # some translations have been answered

    async def close(self) -> None:
        """Let the connections go."""
        await self._client.close()
        await self._admin.close()

    async def day(self, default_policy: Path) -> None:
        """Everything the demo shows, in order."""
        click.echo(
            _COLUMNS.format("request", "task", "rule", "model asked", "model used", "cache", "TTFT", "cost", "saved")
        )
        await asyncio.gather(*(self._send(errand) for errand in first_errands()))
        await self._tools()
        await asyncio.gather(*(self._send(errand) for errand in repeats()))
        await self._batch()
        await self._edit(default_policy)
        self._totals()

    async def _send(self, errand: Errand) -> Any:
        """One request through the SDK → the message; its row is printed once it is traced."""
        async with self._slots:
            if errand.is_streamed:
                async with self._client.messages.stream(**errand.arguments) as stream:
                    message = await stream.get_final_message()
                    trace_id = stream.response.headers["x-router-trace"]
            else:
                raw = await self._client.messages.with_raw_response.create(**errand.arguments)
                message = await raw.parse()
                trace_id = raw.headers["x-router-trace"]
        row = await self._trace(trace_id)
        self._rows.append(row)
        _print_row(errand.title, row)
        return message

    async def _trace(self, trace_id: str) -> dict[str, Any]:
        """The trace of a request, from the admin listener; it is written a moment after the last byte."""
        from anthropic import NotFoundError

        deadline = time.monotonic() + 10
        while True:
            try:
                answer: Any = await self._admin.get(f"/traces/{trace_id}", cast_to=object)
                return answer if isinstance(answer, dict) else {}
            except NotFoundError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.02)

    async def _tools(self) -> None:
        """A tool round trip: the model asks, we look it up, it answers."""
        first, second = tool_turns()
        message = await self._send(first)
        for block in message.content:
            if block.type == "tool_use":
                await self._send(second([part.to_dict() for part in message.content], block.id))
                return

    async def _batch(self) -> None:
        """A Message Batch, from its creation to its results; its `results_url` leads through the router too."""
        requests: Any = batch_items()
        batch = await self._client.messages.batches.create(requests=requests)
        deadline = time.monotonic() + 20
        while batch.processing_status != "ended" and time.monotonic() < deadline:
            await asyncio.sleep(0.2)
            batch = await self._client.messages.batches.retrieve(batch.id)
        kinds = [entry.result.type async for entry in await self._client.messages.batches.results(batch.id)]
        click.echo(
            f"\nbatch {batch.id}: {batch.processing_status}, {kinds.count('succeeded')} of {len(kinds)} succeeded"
        )

    async def _edit(self, default_policy: Path) -> None:
        """Edit a rule while requests are running, and show the route change between two of them."""
        click.echo("\nNow a policy is edited while requests run: `structured-work` shall go to Sonnet only.")
        old = await self._revision()
        running = asyncio.create_task(self._translate_until_moved())
        await self._under_way.wait()  # the edit comes in the middle of the traffic
        await asyncio.to_thread(_edit, default_policy)
        saved_at = time.monotonic()
        while await self._revision() == old:
            if time.monotonic() - saved_at > 10:
                running.cancel()
                raise RouterError("the edited policy did not become live", hint="its diagnostics are above")
            await asyncio.sleep(0.01)
        click.echo(f"  … saved; the edit was live {(time.monotonic() - saved_at) * 1000:.0f} ms later")
        await running
        failed = sum(row["outcome"] != "ok" for row in self._translated)
        click.echo(f"  … {len(self._translated)} requests meanwhile, {failed} failed")

    async def _revision(self) -> str:
        status: Any = await self._admin.get("/policy", cast_to=object)
        return str(status["revision"])

    async def _translate_until_moved(self) -> None:
        """Small requests one after another, until three have followed the edit."""
        moved = 0
        for number in range(1, 100):
            errand = translation(number)
            raw = await self._client.messages.with_raw_response.create(**errand.arguments)
            row = await self._trace(raw.headers["x-router-trace"])
            self._rows.append(row)
            self._translated.append(row)
            if len(self._translated) == 3:
                self._under_way.set()
            _print_row(f"{errand.title} @{row['revision'][:6]}", row)
            moved += row["lane"] != "haiku"
            if moved == 3:
                return

    def _totals(self) -> None:
        known = [row for row in self._rows if row.get("cost_usd") is not None and row.get("baseline_usd") is not None]
        cost = sum(float(row["cost_usd"]) for row in known)
        baseline = sum(float(row["baseline_usd"]) for row in known)
        hits = sum(row["cache"] == "hit" for row in self._rows)
        moved = sum(row["model_sent"] != row["model_asked"] for row in self._rows)
        click.echo(
            f"\n{len(self._rows)} requests, {moved} on another model than asked, {hits} from the cache\n"
            f"cost ${cost:.6f}, without the router ${baseline:.6f}, saved ${baseline - cost:.6f}"
            + (f" ({(baseline - cost) / baseline:.0%})" if baseline else "")
        )


def _edit(default_policy: Path) -> None:
    """Send structured work to Sonnet, in the rule and in the policy's own test: an edit that fails it is refused."""
    text = default_policy.read_text(encoding="utf-8")
    for old, new in (
        ("route: [haiku, sonnet]", "route: sonnet"),
        ("{rule: structured-work, lane: haiku}", "{rule: structured-work, lane: sonnet}"),
    ):
        if old not in text:
            raise RouterError(f"the shipped policy has no `{old}`")
        text = text.replace(old, new)
    default_policy.write_text(text, encoding="utf-8")


def _print_row(title: str, row: dict[str, Any]) -> None:
    def usd(name: str) -> str:
        return "unknown" if row.get(name) is None else f"${float(row[name]):.6f}"

    ttft = "-" if row.get("ttft_s") is None else f"{row['ttft_s'] * 1000:.0f} ms"
    cells: Iterable[str] = (
        title[:27], row.get("task") or "-", row["rule"], row["model_asked"].removeprefix("claude-"),
        row["model_sent"].removeprefix("claude-"), row["cache"], ttft, usd("cost_usd"), usd("saved_usd"),
    )  # fmt: skip
    click.echo(_COLUMNS.format(*cells))


@contextlib.asynccontextmanager
async def _child(*arguments: str, **settings: str) -> AsyncIterator[dict[str, str]]:
    """A process of this program until the block ends → the addresses it printed, by name."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ROUTER_")}
    environment |= settings
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "router.cli.main", *arguments, stdout=asyncio.subprocess.PIPE, env=environment,
        start_new_session=True,  # Ctrl-C is ours to pass on, in order
    )  # fmt: skip
    assert process.stdout is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), _START_S)
        words = line.decode().replace(": ", " ").split()
        addresses = {name: word for name, word in itertools.pairwise(words) if word.startswith("http")}
        if not addresses:
            raise RouterError(f"`router {arguments[0]}` did not start", hint="its reason is above")
        yield addresses
    finally:
        if process.returncode is None:
            process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), 10)
        if process.returncode is None:
            process.kill()
            await process.wait()


__all__ = ["Show", "demo", "shipped_policies"]

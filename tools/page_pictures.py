"""Pictures of the trace page for the README, made anew: `python tools/page_pictures.py [--all] [FOLDER]` (default
`docs`); `--all` adds those in the dark and on a phone, to be looked at.

The demo's workload goes through a real router in front of the simulator; its traces are then repeated over a day, as a
busy day would have written them, and the page is photographed over that store. Needs playwright and a Chromium on the
PATH (Debian: `chromium`).
"""

from __future__ import annotations

import asyncio
import math
import random
import shutil
import sqlite3
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Literal

sys.path.append(str(Path(__file__).parent.parent))

from playwright.async_api import Browser, ViewportSize, async_playwright

from router.cli.demo import Show, _child, shipped_policies
from router.trace.schema import COLUMNS

_DAY_S = 86_400
_REQUESTS = 6_000
_WIDE: ViewportSize = {"width": 1280, "height": 860}
_PHONE: ViewportSize = {"width": 360, "height": 740}


async def main(folder: Path, *, is_all: bool) -> None:
    """Make all pictures."""
    with tempfile.TemporaryDirectory(prefix="router-pictures-") as name:
        work = Path(name)
        shutil.copytree(shipped_policies(), work / "policies")
        store = work / "traces.db"
        async with _child("simulate", "--port", "0", "--latency", "real") as simulator:
            serve = (
                "serve", "--port", "0", "--admin-port", "0", "--upstream", simulator["simulator"],
                "--policies", str(work / "policies"), "--traces", f"sqlite:///{store}",
            )  # fmt: skip
            async with _child(*serve, ROUTER_POLICY_HISTORY=str(work / "history")) as router:
                show = Show(router["api"], router["admin"])
                await show.day(work / "policies" / "default.yaml")
                await show.close()
            spread(store)
            async with (
                _child(*serve, ROUTER_POLICY_HISTORY=str(work / "history")) as router,
                async_playwright() as play,
            ):
                browser = await play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
                await photograph(browser, router["admin"], folder, is_all=is_all)
                await browser.close()


def spread(store: Path) -> None:
    """Repeat the requests in `store` over the last day, more of them by day than by night."""
    dice = random.Random(6)
    at = {name: number for number, name in enumerate(COLUMNS)}
    with closing(sqlite3.connect(store, isolation_level=None)) as connection:
        names = ",".join(COLUMNS)
        rows = connection.execute(f"SELECT {names} FROM traces WHERE endpoint = 'messages'").fetchall()  # noqa: S608
        made = []
        while len(made) < _REQUESTS:
            ago_s = dice.random() * _DAY_S
            if dice.random() > 0.55 + 0.45 * math.cos((ago_s / _DAY_S - 0.4) * 2 * math.pi):
                continue
            row = list(dice.choice(rows))
            row[at["started_at_ns"]] = time.time_ns() - int((ago_s + 60) * 1e9)
            row[at["trace_id"]] = f"{dice.getrandbits(128):032x}"
            row[at["key"]] = dice.choices(("shop", "search", "reports"), (5, 3, 2))[0]
            slower = dice.lognormvariate(0, 0.3)
            for name in ("ttft_s", "duration_s"):
                if row[at[name]] is not None:
                    row[at[name]] *= slower
            if dice.random() < 0.012:
                row[at["outcome"]], row[at["status"]], row[at["error_type"]] = "upstream_error", 529, "overloaded_error"
            made.append(row)
        made.sort(key=lambda row: row[at["started_at_ns"]])
        connection.execute("BEGIN")
        connection.executemany(f"INSERT INTO traces ({names}) VALUES ({','.join('?' * len(COLUMNS))})", made)  # noqa: S608
        connection.execute("COMMIT")


async def photograph(browser: Browser, admin: str, folder: Path, *, is_all: bool) -> None:
    """The overview, the list and one request; with `is_all` also in the dark and on a phone."""
    looks: list[tuple[str, ViewportSize, Literal["light", "dark"]]] = [("", _WIDE, "light")]
    if is_all:
        looks += [("-dark", _WIDE, "dark"), ("-phone", _PHONE, "light")]
    for name, size, scheme in looks:
        context = await browser.new_context(viewport=size, color_scheme=scheme)
        page = await context.new_page()
        await page.goto(f"{admin}/overview?since=24h")
        await page.locator("#groups tr").first.wait_for()
        for _ in range(100):  # the roll-ups are made of the repeated rows in the background
            if await page.locator("#aside-note").is_hidden():
                break
            await page.wait_for_timeout(200)
            await page.reload()
            await page.locator("#groups tr").first.wait_for()
        await page.screenshot(path=folder / f"page-overview{name}.png")
        await page.goto(f"{admin}/?since=24h")
        await page.locator("#rows tr").first.wait_for()
        await page.locator("#totals .card").first.wait_for()
        await page.screenshot(path=folder / f"trace-page{name}.png")
        await page.goto(f"{admin}/?since=24h&task=summarization&cache=miss")
        await page.locator("#rows tr td.took").nth(2).click()
        await page.locator("#panel details").wait_for()
        await page.wait_for_timeout(400)
        await page.set_viewport_size({**size, "height": 1_180})
        await page.screenshot(path=folder / f"page-request{name}.png")
        await context.close()


if __name__ == "__main__":
    given = [argument for argument in sys.argv[1:] if argument != "--all"]
    asyncio.run(main(Path(given[0] if given else "docs"), is_all="--all" in sys.argv))

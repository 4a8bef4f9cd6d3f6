"""The trace page in a real browser: an admin listener over a real store, and Debian's Chromium through playwright."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from kit.recorded_traffic import folders
from router.catalog_file import load_catalog
from router.policy.check import compile_folder
from router.policy.compile import PolicySet
from router.policy.folder import read_folder
from router.trace.again import decide_again
from router.trace.reader_desk import ThreadDesk
from router.trace.record import Attempt, Trace
from router.trace.sqlite import SqliteTraceSink
from router.usage import Tokens, Usage
from router.web.admin import AdminServices, create_admin
from router.web.status import StatusServices

MODELS = ("claude-haiku-5-5", "claude-sonnet-5-5")
TASKS = ("classification", "translation", "reasoning")
# Everything the record's facts need for a decision (`policy.forecast`).
FACTS: Mapping[str, Any] = {
    "requested_model": MODELS[1], "requested_line": "sonnet", "input_tokens": 120, "max_tokens": 300, "messages": 1,
    "turns": 1, "stream": False, "tools": 0, "tool_names": [], "forced_tool": False, "structured_output": False,
    "images": 0, "documents": 0, "thinking": None, "effort": None, "conversation": "new", "request_class": None,
    "user": None, "betas": ["context-1m-2025-08-07"], "header.x-team": None, "language": "en", "client": "python-sdk",
}  # fmt: skip


def policies(where: Path) -> tuple[PolicySet, PolicySet]:
    """Two sets of policies that differ in rules."""
    catalog = load_catalog()
    old, new = (
        compile_folder(read_folder(folder), catalog=catalog, classify=None, folder=str(folder))
        for folder in folders(where)
    )
    return old, new


def a_request(number: int, *, ago_s: float = 0.0, **fields: Any) -> Trace:
    """A finished request, `ago_s` seconds old; every third is hard work, every fifth a cache hit."""
    is_hard, is_hit = number % 3 == 2, number % 5 == 4
    model = MODELS[is_hard]
    task = TASKS[number % 3]
    cost = 0 if is_hit else 120_000_000 * (1 + 2 * is_hard)
    given: dict[str, Any] = {
        "trace_id": f"{number + 1:032x}", "started_at_ns": time.time_ns() - int(ago_s * 1e9), "endpoint": "messages",
        "method": "POST", "path": "/v1/messages", "request_id": f"req_{number:06d}", "tenant": "acme",
        "key": ("shop", "search")[number % 2], "client": "python-sdk", "conversation": f"{number % 7:032x}",
        "policy": "default", "revision": "0" * 12, "rule": "hard" if is_hard else "easy",
        "why": ("rule `banned`: `user` is absent, not `mallory`", "rule `easy`: matched"), "model_asked": MODELS[1],
        "model_sent": model, "model_answered": model, "lane": ("haiku", "sonnet")[is_hard],
        "labels": {"task": task, "difficulty": 0.2, "confidence": 0.9, "p_hard": 0.9 if is_hard else 0.1},
        "facts": dict(FACTS), "usage": Usage(Tokens(120, output=30)), "cost_pusd": cost, "baseline_pusd": 360_000_000,
        "saved_pusd": 360_000_000 - cost, "price_version": "2026-11-01", "ttft_s": 0.3, "duration_s": 1.2,
        "overhead_s": 0.001, "status": 200, "stop_reason": "end_turn", "cache": "hit" if is_hit else "miss",
        "spans": [("inspect", 0.0, 0.0004), ("decide", 0.0004, 0.0006)],
        "attempts": [] if is_hit else [Attempt("haiku", model, 0.001, "ok", 200, 0.3, 1.2)],
    }  # fmt: skip
    return Trace(**{**given, **fields})


class Shown:
    """A running admin listener over a store of its own."""

    def __init__(self, url: str, sink: SqliteTraceSink, new: PolicySet, old: PolicySet) -> None:
        self.url, self.sink, self.new, self.old = url, sink, new, old

    def write(self, *traces: Trace) -> None:
        """Requests that finish now; they are in the store when this returns."""
        for trace in traces:
            self.sink.write(trace)
        self.sink.flush(30.0)


@contextmanager
def shown(
    folder: Path,
    *,
    tab: Any = None,
    admin_token: str | None = None,
    content: Callable[[str], list[dict[str, Any]]] | None = None,
) -> Iterator[Shown]:
    """The page over a new store in `folder`, with the second of the two policy sets in force.

    `content` reads a capture file. `tab` is closed before the listener stops, for a page asks again each few seconds:
    so a connection that is refused is always a fault.
    """
    store = folder / "page.db"
    sink = SqliteTraceSink(store, flush_interval_s=0.01)
    old, new = policies(folder / "policies")
    is_draining = threading.Event()
    status = StatusServices(
        readiness=lambda: (True, {}), policy_status=dict, recent=dict, gauges=dict, now_ns=time.time_ns,
        content=content, has_token=admin_token is not None,
    )  # fmt: skip
    services = AdminServices(
        readiness=lambda: (True, {}),
        metrics=lambda: b"",
        policy_status=lambda: {"revision": new.revision, "is_current": True, "last_error": "", "warnings": []},
        desk=ThreadDesk(store),
        flush=partial(sink.flush, 1.0),
        flush_every_s=0.0,
        decide_now=partial(decide_again, path=store, policies=lambda: new, catalog=load_catalog()),
        is_draining=is_draining.is_set,
        poll_s=0.05,
        admin_token=admin_token,
        status=status,
    )
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(64)
    server = uvicorn.Server(uvicorn.Config(create_admin(services), log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield Shown(f"http://127.0.0.1:{listener.getsockname()[1]}", sink, new, old)
    finally:
        if tab is not None:
            tab.close()
        is_draining.set()
        server.should_exit = True
        thread.join(10)
        listener.close()
        sink.close()


@contextmanager
def a_tab(browser: Any) -> Iterator[Any]:
    """A tab that fails the test when the page throws, breaks its own policy, or asks anything of another host."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.set_default_timeout(10_000)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("request", lambda asked: wrong.append(asked.url) if "//127.0.0.1:" not in asked.url else None)
    yield page
    context.close()
    assert not wrong, wrong


@contextmanager
def a_browser() -> Iterator[Any]:
    """A Chromium of the system; skipped where there is none, unless `REQUIRE_BROWSER` says that there must be."""
    missing = ""
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing = "playwright is not installed"
    if not missing and executable is None:
        missing = "there is no Chromium on the PATH"
    if missing:
        if os.environ.get("REQUIRE_BROWSER"):
            pytest.fail(f"{missing}, and REQUIRE_BROWSER is set")
        pytest.skip(missing)
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()

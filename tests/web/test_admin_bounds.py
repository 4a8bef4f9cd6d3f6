"""What the admin listener does at once is bounded, and a page of another site has none of it done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from router.errors import TraceStoreError
from router.trace.asking import Answer, Question
from router.web.admin import AdminServices, create_admin

pytestmark = pytest.mark.anyio

Headers = dict[str, str]


class SlowDesk:
    """A desk that answers when it is told to."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.under_way = asyncio.Semaphore(0)
        self.given_up = asyncio.Semaphore(0)
        self.is_broken = False

    async def ask(self, _question: Question) -> Answer:
        self.under_way.release()
        try:
            await self.may_answer.wait()
        except asyncio.CancelledError:
            self.given_up.release()
            raise
        if self.is_broken:
            raise TraceStoreError("broken")
        return Answer({"mark": None, "first": None}, b"{}")

    async def close(self) -> None:
        """Nothing is held."""


class Listener:
    """The application, asked without a server between."""

    def __init__(self, desk: SlowDesk | None) -> None:
        self.desk = desk
        self.app = create_admin(
            AdminServices(
                readiness=lambda: (True, {}),
                metrics=lambda: b"",
                policy_status=dict,
                desk=desk,
                decide_now=lambda _shown: {},
                is_draining=lambda: True,
                poll_s=0.01,
            )
        )

    async def ask(
        self, path: str, headers: Headers | None = None, method: str = "GET", leaves: asyncio.Event | None = None
    ) -> tuple[int, Headers]:
        path, _, query = path.partition("?")
        raw = [(b"host", b"localhost"), *((k.encode(), v.encode()) for k, v in (headers or {}).items())]
        scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path,
                 "raw_path": path.encode(), "query_string": query.encode(), "headers": raw, "scheme": "http",
                 "server": ("localhost", 80), "client": ("127.0.0.1", 1), "root_path": ""}  # fmt: skip
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            await (leaves or asyncio.Event()).wait()
            return {"type": "http.disconnect"}

        await self.app(scope, receive, send)
        return sent[0]["status"], {k.decode(): v.decode() for k, v in sent[0]["headers"]}


@asynccontextmanager
async def held(desk: SlowDesk, count: int, ask: Callable[[], Any]) -> AsyncIterator[list[asyncio.Task[Any]]]:
    """So many questions under way in the store; they are answered at the end of the block."""
    tasks = [asyncio.ensure_future(ask()) for _ in range(count)]
    for _ in tasks:
        await asyncio.wait_for(desk.under_way.acquire(), 10)
    try:
        yield tasks
    finally:
        desk.may_answer.set()
        await asyncio.gather(*tasks)
        desk.may_answer.clear()


@pytest.mark.parametrize("path", ["/report", "/figures?since=1h"])
async def test_a_third_question_that_reads_much_is_told_to_come_again(path: str) -> None:
    """After a second, with a time; when one is answered the next one is asked."""
    desk = SlowDesk()
    listener = Listener(desk)
    async with held(desk, 2, lambda: listener.ask(path)) as tasks:
        status, headers = await listener.ask("/report?by=conversation")
        assert (status, headers["retry-after"]) == (503, "2")
    assert [task.result()[0] for task in tasks] == [200, 200]
    desk.may_answer.set()
    assert (await listener.ask(path))[0] == 200


@pytest.mark.parametrize(("path", "most"), [("/export", 2), ("/events", 32)])
async def test_as_many_long_answers_as_allowed_when_they_come_at_once(path: str, most: int) -> None:
    """They are counted before the store is asked; a seat is free again after an answer and after an error."""
    desk = SlowDesk()
    listener = Listener(desk)
    for is_broken in (True, False):
        desk.is_broken = is_broken
        async with held(desk, most, lambda: listener.ask(path)) as tasks:
            assert (await asyncio.wait_for(listener.ask(path), 10))[0] == 429
        assert {task.result()[0] for task in tasks} == {500 if is_broken else 200}
    desk.may_answer.set()
    assert (await listener.ask(path))[0] == 200


@pytest.mark.parametrize("path", ["/traces", "/traces/x", "/report", "/figures", "/export", "/events", "/traces/x/now"])
async def test_a_client_that_leaves_is_answered_no_more(path: str) -> None:
    """Its question is given up where it is answered, and its turn and seat are free."""
    desk, leaves = SlowDesk(), asyncio.Event()
    listener = Listener(desk)
    for _ in range(3):  # more than there are turns and seats for exports
        asking = asyncio.ensure_future(listener.ask(path, leaves=leaves))
        await asyncio.wait_for(desk.under_way.acquire(), 10)
        leaves.set()
        await asyncio.wait_for(desk.given_up.acquire(), 10)
        assert (await asyncio.wait_for(asking, 10))[0] == 499
        leaves.clear()


FOREIGN = [{"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}, {"origin": "https://example.com"}]


@pytest.mark.parametrize("foreign", FOREIGN, ids=str)
@pytest.mark.parametrize(
    "path",
    ["/report?by=conversation", "/figures", "/traces", "/traces/x", "/traces/x/now", "/export", "/events", "/policy",
     "/status", "/session", "/metrics", "/cache", "/nothing"],
)  # fmt: skip
async def test_a_page_of_another_site_has_nothing_read(path: str, foreign: Headers) -> None:
    """Its questions end before the store: here it would never answer."""
    status, _ = await asyncio.wait_for(Listener(SlowDesk()).ask(path, foreign), 10)
    assert status == 403


@pytest.mark.parametrize("foreign", FOREIGN, ids=str)
@pytest.mark.parametrize("path", ["/", "/overview", "/t/abc", "/static/app.js", "/login", "/healthz", "/readyz"])
async def test_a_link_on_another_site_leads_to_the_page(path: str, foreign: Headers) -> None:
    """Links in a chat go on working."""
    assert (await Listener(None).ask(path, foreign))[0] == 200


async def test_the_page_itself_and_programs_may_ask() -> None:
    """The same origin, an address typed by hand, and what says nothing."""
    for headers in ({"sec-fetch-site": "same-origin", "origin": "http://localhost"}, {"sec-fetch-site": "none"}, {}):
        assert (await Listener(None).ask("/policy", headers))[0] == 200

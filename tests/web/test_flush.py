"""Questions share the waits for the writer, and still see what was written before them."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from kit.page import a_request

from router.trace.reader import SqliteTraceReader
from router.trace.sqlite import SqliteTraceSink
from router.web.flush import SharedFlush

pytestmark = pytest.mark.anyio


class Writer:
    """A flush that lasts until it is told to end."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.may_end = threading.Semaphore(0)
        self.count = 0

    def __call__(self) -> None:
        self.count += 1
        self.begun.release()
        assert self.may_end.acquire(timeout=10)


async def test_what_comes_during_a_flush_shares_the_next_one() -> None:
    """The one under way may have begun before what they want to see was written."""
    writer = Writer()
    flush = SharedFlush(writer, every_s=0.0)
    first = [asyncio.ensure_future(flush()) for _ in range(5)]
    assert await asyncio.to_thread(writer.begun.acquire, timeout=10)
    second = [asyncio.ensure_future(flush()) for _ in range(20)]
    await asyncio.sleep(0)
    writer.may_end.release()
    await asyncio.gather(*first)
    assert await asyncio.to_thread(writer.begun.acquire, timeout=10)
    assert not any(each.done() for each in second)
    writer.may_end.release()
    await asyncio.gather(*second)
    assert writer.count == 2


async def test_who_leaves_takes_nobody_along() -> None:
    """A client that has gone does not end the wait of the others."""
    writer = Writer()
    flush = SharedFlush(writer, every_s=0.0)
    leaving, staying = asyncio.ensure_future(flush()), asyncio.ensure_future(flush())
    assert await asyncio.to_thread(writer.begun.acquire, timeout=10)
    leaving.cancel()
    await asyncio.wait([leaving])
    writer.may_end.release()
    await staying
    assert leaving.cancelled()


async def test_a_few_come_at_once_and_many_wait_their_time() -> None:
    """Whoever opens a page waits for nothing; who asks without a pause is held to so many in a second."""
    count = 0

    def flushed() -> None:
        nonlocal count
        count += 1

    flush = SharedFlush(flushed, every_s=60.0)
    for _ in range(4):
        await asyncio.wait_for(flush(), 10)
    fifth = asyncio.ensure_future(flush())
    done, _ = await asyncio.wait([fifth], timeout=0.05)
    assert (done, count) == (set(), 4)
    fifth.cancel()


async def test_a_question_sees_what_was_written_before_it(tmp_path: Path) -> None:
    """With the real writer, again and again."""
    sink = SqliteTraceSink(tmp_path / "t.db", flush_interval_s=60.0)
    flush = SharedFlush(sink.flush, every_s=0.0)
    reader = SqliteTraceReader(tmp_path / "t.db")
    for number in range(10):
        sink.write(a_request(number))
        await asyncio.gather(flush(), flush())
        assert reader.get(f"req_{number:06d}") is not None
    await asyncio.to_thread(sink.close)


async def test_without_a_writer_there_is_nothing_to_wait_for() -> None:
    """Another process may write the store."""
    await asyncio.wait_for(SharedFlush(None)(), 1)


async def test_a_writer_that_fails_holds_up_nobody() -> None:
    """The store is asked all the same."""

    def broken() -> None:
        raise RuntimeError("broken")

    flush = SharedFlush(broken, every_s=0.0)
    for _ in range(3):
        await asyncio.wait_for(flush(), 10)

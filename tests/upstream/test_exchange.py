"""The head of a request, and the corners of an exchange that need no socket."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.upstream_calls import call

from router.errors import ClientGone, InternalError, UpstreamBroken
from router.upstream.exchange import Exchange, request_head

NAMES = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=20).map(str.encode)
VALUES = st.binary(max_size=30)


class Owner:
    """Counts aborts."""

    def __init__(self) -> None:
        self.given_up = 0

    def gave_up(self, exchange: Exchange) -> None:
        self.given_up += 1


@given(headers=st.lists(st.tuples(NAMES, VALUES), max_size=8))
def test_no_header_can_add_a_line(headers: list[tuple[bytes, bytes]]):
    """Either the head has exactly the lines it was given, or it is refused (S14)."""
    request = call(headers=headers or [(b"a", b"b")])
    is_bad = any(byte in value for _, value in headers for byte in (b"\r", b"\n", b"\0"))
    if is_bad:
        with pytest.raises(InternalError):
            request_head(request, b"h")
        return
    lines = request_head(request, b"h").split(b"\r\n")
    expected = [b"POST /v1/messages HTTP/1.1", b"host: h", *(n + b": " + v for n, v in request.headers)]
    assert lines == [*expected, b"content-length: 2", b"", b""]


@pytest.mark.anyio
async def test_only_one_coroutine_may_wait():
    """Two readers of one answer are a bug of ours, and told as such."""
    exchange = Exchange(call(), Owner(), asyncio.get_running_loop())
    first = asyncio.ensure_future(exchange.reply())
    await asyncio.sleep(0)
    with pytest.raises(InternalError):
        await exchange.reply()
    exchange.begin(200, [])
    assert await first is exchange


@pytest.mark.anyio
async def test_an_abort_of_a_complete_answer_drops_what_is_unread():
    """Nobody wants it any more: memory is freed, and the abort is not counted as one."""
    owner = Owner()
    exchange = Exchange(call(), owner, asyncio.get_running_loop())
    exchange.begin(200, [])
    exchange.take(b"rest")
    exchange.complete()
    exchange.abort()
    with pytest.raises(ClientGone):
        await exchange.read()
    assert owner.given_up == 0


@pytest.mark.anyio
async def test_the_first_error_stays():
    """What happened first is what is told."""
    owner = Owner()
    exchange = Exchange(call(), owner, asyncio.get_running_loop())
    exchange.fail(UpstreamBroken("first"))
    exchange.fail(UpstreamBroken("second"))
    exchange.abort()
    with pytest.raises(UpstreamBroken, match="first"):
        await exchange.reply()
    assert owner.given_up == 0

"""Short ways to say an upstream call in a test."""

from __future__ import annotations

from router.seams import Body, Deadlines, Upstream, UpstreamCall, UpstreamReply


def call(
    body: bytes | Body = b"{}",
    *,
    method: str = "POST",
    target: bytes = b"/v1/messages",
    headers: list[tuple[bytes, bytes]] | None = None,
    deadlines: Deadlines | None = None,
    is_once: bool = False,
) -> UpstreamCall:
    """A call with a small JSON body and the default deadlines, unless told otherwise."""
    return UpstreamCall(method, target, headers or [(b"x-api-key", b"k")], body, deadlines or Deadlines(), is_once)


async def read_all(reply: UpstreamReply) -> bytes:
    """The rest of the body."""
    parts: list[bytes] = []
    while chunk := await reply.read():
        parts.append(chunk)
    return b"".join(parts)


async def fetch(upstream: Upstream, request: UpstreamCall | None = None) -> tuple[int, bytes]:
    """Send a call and read the whole answer: status and body."""
    reply = await upstream.start(request or call()).reply()
    return reply.status, await read_all(reply)

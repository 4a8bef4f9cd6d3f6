"""A stored stream, one event at a time, for a rule that asks for a pace."""

from __future__ import annotations

from router.errors import ClientGone, StreamCut, error_body
from router.serve.attempts import sleep
from router.serve.exchange import Exchange

_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")  # of an event


class PacedRelay:
    """A `Relay` of the events in `body`, `pace_s` seconds apart."""

    def __init__(self, exchange: Exchange, body: bytes, pace_s: float) -> None:
        self._exchange = exchange
        self._body = body
        self._end = next((end for end in _ENDS if end in body[:4096]), _ENDS[0])  # a stream keeps to one kind of line
        self._pace_s = pace_s
        self._at = 0
        self.is_complete = False

    async def read(self) -> bytes:
        """See `Relay`."""
        if self._at >= len(self._body):
            self.is_complete = True
            return b""
        if self._at:
            try:
                await sleep(self._exchange, self._pace_s)
            except ClientGone:
                if self._exchange.watch.is_gone:
                    raise
                return self._cut()
        found = self._body.find(self._end, self._at)
        start, self._at = self._at, len(self._body) if found < 0 else found + len(self._end)
        return self._body[start : self._at]

    def abort(self) -> None:
        """See `Relay`: there is nothing to let go."""

    def _cut(self) -> bytes:
        """The server stops: one `error` event behind what was sent, then the end."""
        self._at = len(self._body)
        reason = StreamCut("the router is shutting down before the answer was complete")
        trace = self._exchange.trace
        trace.outcome, trace.error_type, trace.error_code = "cut", reason.wire_type, reason.code
        return b"event: error\ndata: " + error_body(reason.wire_type, reason.message, trace.request_id or "") + b"\n\n"

"""The fleet's recent traces: what every router writes into one bounded stream of Redis, for the page of any of them.

Theory of operation. The request path pays for one append. A moment later one task makes rows of what waits
(`fleet_row`) and has a script append them, some dozens a call, on a link of its own: answers and conversations never
wait behind traces. The stream keeps the last `most` rows and none that is older than a week; it is a window and no
history, which belongs to a collector (`trace.otlp`). Items of batches are left out: one batch would empty the window.

While Redis is away or slow, what waits is kept and tried again; over `queue_max` the oldest is dropped. So at every
moment: handed over = queued + written + dropped + failed. A batch whose reply was lost may be written twice, and the
reader shows it once. A Redis that takes rows but refuses to trim them is said once, and counted for each batch
(`untrimmed`): the stream keeps its length all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Mapping

from router.redis_link import RedisLink, RedisUnavailable
from router.trace.fleet_row import encode
from router.trace.record import Trace

KEY = "router:v1:traces"
MOST = 10_000
INTERVAL_S = 0.1
KEEP_MS = 7 * 86_400_000
DEADLINE_S = 1.0  # of a command: nobody waits for these but the task, and whoever looks at the page
_BATCH = 64  # rows of one call; they are encoded in one go, in about half a millisecond
_AGAIN_S = 0.5

# XADD comes first: a Redis that is full refuses it then, and nothing is written twice. What trims may be refused, and
# the reply says what was: the length is bounded by XADD itself, and rows that are there must not be written again.
_WRITE = f"""\
for i = 2, #ARGV do redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', 't', ARGV[i]) end
local refused = ''
local function try(name, ...)
  local said = redis.pcall(name, ...)
  if type(said) == 'table' and said.err then refused = name; return nil end
  return said
end
local now = try('TIME')
if now then try('XTRIM', KEYS[1], 'MINID', '~', string.format('%.0f', now[1] * 1000 - {KEEP_MS})) end
try('PEXPIRE', KEYS[1], {KEEP_MS})
return refused
"""

_log = logging.getLogger("router")


class FleetTraces:
    """A `seams.TraceSink` that writes into the stream. `pod` names this router, `link` is closed by whoever made it.

    `most` rows stay in the stream, a few more until Redis trims; `queue_max` traces wait in memory; `interval_s` is how
    long a trace waits for others.
    """

    def __init__(
        self,
        link: RedisLink,
        pod: str,
        *,
        most: int = MOST,
        queue_max: int = 4_000,
        interval_s: float = INTERVAL_S,
    ) -> None:
        self.link = link
        self.pod = pod
        self.most = most
        self._queue_max = queue_max
        self._interval_s = interval_s
        self._queue: deque[Trace] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._flushing: asyncio.Task[None] | None = None
        self._is_closed = False
        self._is_refused = False  # Redis answers, and says no
        self._is_untrimmed = False  # it takes rows, and does not let them be trimmed
        self._in_hand = self._written = self._dropped = self._failed = self._retries = self._untrimmed = 0
        self.unreadable = 0  # rows that are none, met by whoever read
        self.gaps = 0  # that live tails were told of

    def write(self, trace: Trace) -> None:
        """Take a finished trace: an append, and for the first of a while a timer."""
        queue = self._queue
        if len(queue) >= self._queue_max or self._is_closed:
            self._dropped += 1
            if self._is_closed:
                return
            queue.popleft()  # the newest are what people look at
        queue.append(trace)
        if self._timer is None:
            self._arm(self._interval_s)

    def close(self) -> None:
        """Take no more; `stop` writes what waits."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()

    async def stop(self, within_s: float = DEADLINE_S) -> None:
        """Write what waits, if that is done in `within_s` seconds; what is left is counted as dropped."""
        self.close()
        await self.flush(within_s)
        if self._flushing is not None:
            self._flushing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._flushing
        self._dropped += len(self._queue)
        self._queue.clear()

    async def flush(self, within_s: float) -> None:
        """Return when what was handed over is in the stream, or Redis does not take it, or after `within_s` seconds."""
        if self._flushing is None and self._queue:
            self._begin()
        if self._flushing is not None:
            await asyncio.wait((self._flushing,), timeout=within_s)

    def stats(self) -> Mapping[str, int]:
        """Counts since the start; `queued` is of now."""
        return {
            "queued": len(self._queue) + self._in_hand,
            "written": self._written,
            "dropped": self._dropped,
            "failed": self._failed,
            "retries": self._retries,
            "untrimmed": self._untrimmed,
            "unreadable": self.unreadable,
            "gaps": self.gaps,
        }

    def _arm(self, in_s: float) -> None:
        try:
            self._timer = asyncio.get_running_loop().call_later(in_s, self._begin)
        except RuntimeError:  # no loop: the next trace of a request, or `stop`, takes this one along
            self._timer = None

    def _begin(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        if self._flushing is None:
            self._flushing = asyncio.get_running_loop().create_task(self._flush())

    async def _flush(self) -> None:
        pause_s = self._interval_s
        try:
            while self._queue:
                if not await self._write_some():
                    pause_s = _AGAIN_S
                    break
        finally:
            self._flushing = None
            if self._queue and not self._is_closed and self._timer is None:
                self._arm(pause_s)

    async def _write_some(self) -> bool:
        """Write the oldest; False when Redis did not take them, and they wait again."""
        taken: list[Trace] = []
        rows: list[bytes] = []
        while self._queue and len(taken) < _BATCH:
            trace = self._queue.popleft()
            try:
                rows.append(encode(trace, self.pod))
                taken.append(trace)
            except Exception:  # a sink: an odd record costs itself and nothing else
                self._failed += 1
        is_taken = not rows
        self._in_hand = len(rows)
        try:
            if rows:
                refused = bytes(await self.link.run(_WRITE, [KEY], [self.most, *rows])).decode("ascii")
                self._written += len(rows)
                is_taken = True
                self._say(None)
                self._say_untrimmed(refused)
        except RedisUnavailable as exc:
            self._retries += 1
            self._say(exc if exc.is_reply else None)
        finally:
            self._in_hand = 0
            if not is_taken:
                self._wait_again(taken)
        return is_taken

    def _wait_again(self, taken: list[Trace]) -> None:
        room = max(0, self._queue_max - len(self._queue))
        kept = taken[len(taken) - room :] if room < len(taken) else taken
        self._dropped += len(taken) - len(kept)
        self._queue.extendleft(reversed(kept))

    def _say(self, refusal: RedisUnavailable | None) -> None:
        """Say once that Redis refuses these commands, which the link does not: it answers, after all."""
        if (refusal is not None) != self._is_refused:
            self._is_refused = refusal is not None
            if refusal is not None:
                _log.error(
                    "fleet: Redis does not take traces: %s; the page of other routers lacks them", refusal.reason
                )
            else:
                _log.info("fleet: Redis takes traces again")

    def _say_untrimmed(self, refused: str) -> None:
        """Count and say once which command of those that trim is refused; the rows are written all the same."""
        self._untrimmed += bool(refused)
        if bool(refused) != self._is_untrimmed:
            self._is_untrimmed = bool(refused)
            if refused:
                _log.error(
                    "fleet: Redis refuses %s: the last %d traces stay there for longer than a week; "
                    "let the user of `fleet` use it (`ACL SETUSER … +%s`)",
                    refused,
                    self.most,
                    refused.lower(),
                )
            else:
                _log.info("fleet: Redis trims traces again")

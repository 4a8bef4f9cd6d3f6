"""What a killed process had in hand: its open requests, and those that had ended and were not yet in the store.

The store is written a tenth of a second after a request at the earliest, and a process can be killed at any moment. So
each serving process keeps a file beside the store, mapped into memory: a request gets a slot when it begins, its money
is written there when it has ended, and the slot is free again once the row is in the store. The memory of a mapped file
outlives its process. Whoever opens the store next finds files that nobody holds any more, and books what is in them:
what had ended with its money, what was still open as `aborted`, with an unknown cost.

A request that found no room in the store's queue stays here alone, until the store takes rows again.

Two writes of some two hundred bytes per request and no system call. A slot has room for the texts of any request: where
they are too long together, each is cut to a length of its own, so that none takes another's place. The file is laid out
on the disk before it is used, because the first write to a page that the disk has no room for would kill the process;
file systems that find new room at every write are left alone for the same reason. Of what a client says, the path and
the names of models are in it.
"""

from __future__ import annotations

import logging
import mmap
import os
import secrets
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: there is no way to see whether a file's owner is alive
    fcntl = None  # type: ignore[assignment]

from router.trace.record import Attempt, Trace
from router.usage import Tokens, Usage

_log = logging.getLogger(__name__)

SLOTS = 8_192
_SLOT = 1_024
_HALF = 448  # what is known at the beginning; behind it what is known at the end
_BEGUN = struct.Struct("<BHq")  # state, length of the text, started_at_ns
_ENDED = struct.Struct("<H11q2d")  # length of the text, money, tokens, status, flags; duration, overhead
# How many bytes of each text are kept where they do not all fit, in the order in which they are written.
_BEGUN_BOUNDS = (32, 16, 16, 112, 112, 140)
_ENDED_BOUNDS = (16, 48, 10, 24, 48, 48, 48, 16, 56, 44, 24, 8, 60)
_BEGUN_MAX = _HALF - _BEGUN.size
_ENDED_MAX = _SLOT - _HALF - _ENDED.size
_OPEN, _OVER, _FREE = 1, 2, 0
_UNKNOWN = -(2**63)
_MAGIC = b"router journal 2\n"
# Where a write may need room that was not set aside for it, or where a lock says nothing about other hosts.
_AVOIDED = ("btrfs", "zfs", "bcachefs", "nfs", "nfs4", "cifs", "smb3", "9p")


class Journal:
    """The file of one process beside the store at `path`. Raises OSError where there can be none.

    `begun` and `ended` are for the thread that serves, `kept` and `free` for the writer's. Requests beyond `slots` that
    are open at a time are not kept.
    """

    def __init__(self, path: Path, slots: int = SLOTS) -> None:
        kind = _file_system(path.parent)
        if fcntl is None or kind in _AVOIDED:
            raise OSError(f"a journal is not kept on this file system ({kind or 'none'})")
        self.path = path.with_name(f"{path.name}.open-{os.getpid()}-{secrets.token_hex(4)}")
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            size = _SLOT * (slots + 1)
            os.posix_fallocate(self._file, 0, size)
            self._memory = mmap.mmap(self._file, size)
            self._memory[: len(_MAGIC)] = _MAGIC
        except OSError:
            self._remove()
            raise
        self._free = [_SLOT * number for number in range(slots, 0, -1)]
        self._slots = slots

    def begun(self, trace: Trace) -> None:
        """A request begins: it gets a slot where there is one."""
        try:
            at = self._free.pop()
        except IndexError:
            return
        trace.slot = at
        texts = (trace.trace_id, trace.endpoint, trace.method, trace.tenant, trace.key, trace.path[:200])
        text = _joined(texts, _BEGUN_BOUNDS, _BEGUN_MAX)
        size = len(text)
        memory = self._memory
        begin = at + _BEGUN.size
        memory[begin : begin + size] = text
        _BEGUN.pack_into(memory, at, _OPEN, size, trace.started_at_ns)

    def ended(self, trace: Trace) -> bool:
        """A request that has a slot is over: its money is known, and safe from now on. Whether it was noted."""
        at = trace.slot
        if at < 0:
            return False
        texts = (
            trace.outcome, trace.lane, trace.cache, trace.price_version, trace.model_sent,
            trace.model_answered or "", trace.policy, trace.revision, trace.rule, trace.request_id or "",
            trace.stop_reason or "", trace.error_code or "", trace.model_asked,
        )  # fmt: skip
        text = _joined(texts, _ENDED_BOUNDS, _ENDED_MAX)
        size = len(text)
        usage, cost, baseline, saved = trace.usage, trace.cost_pusd, trace.baseline_pusd, trace.saved_pusd
        if usage is None:
            flags = a = b = c = d = e = 0
        else:
            tokens = usage.tokens
            a, b, c, d, e = (
                tokens.input, tokens.cache_read, tokens.cache_write_5m, tokens.cache_write_1h, tokens.output,
            )  # fmt: skip
            is_special = usage.iterations or usage.web_searches or usage.geo or usage.speed or usage.service_tier
            flags = 1 + 2 * usage.is_final + 4 * bool(is_special)
        memory, begin = self._memory, at + _HALF
        try:
            _ENDED.pack_into(
                memory, begin, size,
                _UNKNOWN if cost is None else cost, _UNKNOWN if baseline is None else baseline,
                _UNKNOWN if saved is None else saved,
                a, b, c, d, e, trace.status, flags, 0, trace.duration_s, trace.overhead_s,
            )  # fmt: skip
        except struct.error:  # a count that only a hostile upstream reports: the request stays open here
            return False
        begin += _ENDED.size
        memory[begin : begin + size] = text
        memory[at] = _OVER  # last: what is killed before is still open
        return True

    def kept(self, at: int) -> Trace | None:
        """The ended request of a slot, as far as it was noted; None where that is not whole."""
        try:
            return _read(self._memory[at : at + _SLOT])
        except (ValueError, struct.error):
            return None

    def free(self, slots: Sequence[int]) -> None:
        """These are in the store, or counted as lost: their slots may be used again."""
        memory, free = self._memory, self._free
        for at in slots:
            if at >= 0:
                memory[at] = _FREE
                free.append(at)

    def close(self) -> None:
        """Let go. The file is removed, unless something is in it that the store did not take."""
        if len(self._free) == self._slots:
            self._remove()
        else:
            _log.warning("trace store: the next start books what `%s` holds", self.path)
            os.close(self._file)
        self._memory.close()

    def _remove(self) -> None:
        with suppress(OSError):
            os.unlink(self.path)
        os.close(self._file)


def open_journal(path: Path) -> Journal | None:
    """A journal beside the store at `path`; None, said in the log, where there can be none."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return Journal(path)
    except OSError as error:
        _log.warning("trace store: if this process is killed, its open requests leave no trace: %s", error)
        return None


class Leftover:
    """The file of a process that is gone, held against all others until `close`."""

    def __init__(self, path: Path, file: int) -> None:
        self.path = path
        self._file = file

    def traces(self) -> list[Trace]:
        """What was in hand: ended requests with their money, open ones as `aborted`."""
        data = _whole(self._file)
        found = []
        for at in range(_SLOT, len(data) - _SLOT + 1, _SLOT) if data.startswith(_MAGIC) else ():
            if data[at] in (_OPEN, _OVER):
                with suppress(ValueError, struct.error):  # killed in the middle of a slot that was not in use before
                    found.append(_read(data[at : at + _SLOT]))
        return found

    def close(self, *, is_booked: bool) -> None:
        """Remove the file where all of it is in the store; else leave it to the next."""
        if is_booked:
            with suppress(OSError):
                os.unlink(self.path)
        os.close(self._file)


def leftovers(path: Path) -> Iterator[Leftover]:
    """The journals beside the store at `path` whose processes are gone."""
    if fcntl is None:
        return
    for place in sorted(path.parent.glob(f"{_plain(path.name)}.open-*")):
        try:
            file = os.open(place, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # its process lives, or another one is at it
            os.close(file)
            continue
        if os.fstat(file).st_nlink == 0:  # another one was at it, and is through
            os.close(file)
            continue
        yield Leftover(place, file)


def _read(slot: bytes) -> Trace:
    """One slot as a trace. Raises ValueError or struct.error for one that was never whole."""
    state, size, started_at_ns = _BEGUN.unpack_from(slot)
    texts = _split(slot[_BEGUN.size : _BEGUN.size + size])
    trace_id, endpoint, method, tenant, key, path = texts
    trace = Trace(trace_id, started_at_ns, endpoint=endpoint, method=method, tenant=tenant, key=key, path=path)
    trace.request_id = "req_" + trace_id
    if state == _OPEN:
        trace.outcome = "aborted"
        return trace
    size, cost, baseline, saved, *rest, duration_s, overhead_s = _ENDED.unpack_from(slot, _HALF)
    begin = _HALF + _ENDED.size
    (
        trace.outcome, trace.lane, trace.cache, trace.price_version, trace.model_sent,
        answered, trace.policy, trace.revision, trace.rule, request_id, stop_reason, error_code, trace.model_asked,
    ) = _split(slot[begin : begin + size])  # fmt: skip
    trace.model_answered, trace.stop_reason, trace.error_code = (
        answered or None,
        stop_reason or None,
        error_code or None,
    )
    trace.request_id = request_id or trace.request_id
    trace.cost_pusd, trace.baseline_pusd, trace.saved_pusd = (
        None if pusd == _UNKNOWN else pusd for pusd in (cost, baseline, saved)
    )
    *counts, trace.status, flags, _ = rest
    trace.duration_s, trace.overhead_s = duration_s, overhead_s
    trace.why = ("booked from the journal: its process was killed, or the store took no rows",)
    if flags:
        trace.usage = Usage(Tokens(*counts), is_final=bool(flags & 2))
    if trace.cache not in ("hit", "coalesced") and (flags or cost):
        # The whole usage only where these counts are all of it: to book it again at other prices must not be wrong.
        attempt = Attempt(trace.lane, trace.model_sent, 0.0, status=trace.status, ended_s=duration_s)
        attempt.usage, attempt.cost_pusd = None if flags & 4 else trace.usage, trace.cost_pusd
        trace.attempts.append(attempt)
    return trace


def _joined(texts: tuple[str, ...], bounds: tuple[int, ...], most: int) -> bytes:
    """The texts with a zero byte between each two, in at most `most` bytes.

    A zero byte inside one would shift those behind it, so it is left out; what is too long is cut to its bound.
    """
    joined = "\0".join(texts).encode("utf-8", "replace")
    if len(joined) <= most and joined.count(b"\0") == len(texts) - 1:
        return joined
    parts = [text.replace("\0", "").encode("utf-8", "replace") for text in texts]
    joined = b"\0".join(parts)
    if len(joined) <= most:
        return joined
    return b"\0".join(part[:bound] for part, bound in zip(parts, bounds, strict=True))


def _split(joined: bytes) -> list[str]:
    """The texts again; a character that was cut in the middle is left out."""
    return joined.decode("utf-8", "ignore").split("\0")


def _whole(file: int) -> bytes:
    return os.pread(file, os.fstat(file).st_size, 0)


def _plain(name: str) -> str:
    """A file name for `glob` that means itself."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)


def _file_system(folder: Path) -> str:
    """The kind of file system that a folder is on; "" where the system does not tell."""
    place, found, longest = os.fspath(folder.resolve()), "", -1
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    for line in mounts:
        left, _, right = line.partition(" - ")
        point = left.split(" ")[4].replace("\\040", " ")
        is_above = place == point or place.startswith(point.rstrip("/") + "/")
        if is_above and len(point) >= longest:
            found, longest = right.split(" ")[0], len(point)
    return found

"""The log of `router serve`: one line per record whatever is in it, JSON for programs or text for a terminal.

What goes in: a line for each change of state (policies, Redis, trace store, overload, memory, drain) and one for each
request that failed (`FailureLog`); nothing for one that was served, and nothing for a client's own mistake. The same
failure a hundred times a second is said ten times, then once a second with the number that was left out.

What never goes in: credentials. Every text of a record passes the rules that also clean captured content, and the
secrets of the settings are looked for as they are. Of an exception only its type and the places in the code are said,
for its message may be a client's words; the messages of the system (`OSError`, SQLite) are said too.

Lines are written by a thread of their own from a bounded queue: a terminal or a collector that does not read on holds
up that thread and never a request. What does not fit is counted, and said when there is room.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import logging
import sqlite3
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TextIO
from urllib.parse import unquote, urlsplit

from router.settings import SECRETS, Settings
from router.trace.capture_redact import Rule, clean, read_rules
from router.trace.record import Trace

# What a record may carry beside its message, in the order of the line: `_log.info("…", extra={"event": "drain"})`.
FIELDS = (
    "event",
    "trace_id",
    "request_id",
    "tenant",
    "key",
    "endpoint",
    "status",
    "outcome",
    "error_code",
    "error_type",
    "upstream_status",
    "lane",
    "model",
    "attempts",
    "duration_s",
    "left_out",
    "lines_lost",
)

_MOST_MESSAGE = 16_000  # bytes of a message: the diagnostics of a policies folder are the longest
_MOST_FIELD = 500
_QUEUE_MAX = 10_000  # lines
_CLOSE_S = 2.0
_SAID_OUT_LOUD = (OSError, sqlite3.Error)
_HEADER = (
    r"""(?i:(?:x-api-key|authorization)["']?\s*[:=]\s*["']?(?:(?:bearer|basic|token)\s+)?([^\s"',;]{6,}))"""
    r"""|(?i:\bbearer\s+([^\s"',;]{6,}))"""
)

_log = logging.getLogger("router")


class _LineFormatter(logging.Formatter):
    """A record as one line without its end."""

    def __init__(self, rules: tuple[Rule, ...], secrets: Iterable[str]) -> None:
        super().__init__()
        self._rules = rules
        self._secrets = tuple(secret.encode() for secret in secrets)

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        fields: dict[str, Any] = {"message": self._clean(record.getMessage(), _MOST_MESSAGE)}
        for name in FIELDS:
            value = record.__dict__.get(name)
            if value is not None and value != "":
                plain = isinstance(value, bool | int | float)
                fields[name] = value if plain else self._clean(str(value), _MOST_FIELD)
        if record.exc_info and record.exc_info[1] is not None:
            fields["exception"] = self._clean(described(record.exc_info[1]), _MOST_MESSAGE)
        return self._line(record, fields)

    def _clean(self, text: str, most: int) -> str:
        data = text[: 2 * most].encode("utf-8", "replace")
        return clean(data, self._rules, most, self._secrets).text.decode("utf-8", "replace")

    def _line(self, record: logging.LogRecord, fields: Mapping[str, Any]) -> str:
        raise NotImplementedError


class JsonLines(_LineFormatter):
    """One JSON object per record, in ASCII."""

    def _line(self, record: logging.LogRecord, fields: Mapping[str, Any]) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        head = {"time": f"{at}.{int(record.msecs):03d}Z", "level": record.levelname.lower(), "logger": record.name}
        return json.dumps({**head, **fields}).replace("\x7f", "\\u007f")


class TextLines(_LineFormatter):
    """Time, level, message, then `name=value`; whatever would move the cursor or end the line is escaped.

    A record with `is_block` (the diagnostics of the operator's own files) keeps its lines, indented.
    """

    def _line(self, record: logging.LogRecord, fields: Mapping[str, Any]) -> str:
        at = time.strftime("%H:%M:%S", time.localtime(record.created))
        words = [f"{name}={_shown(value)}" for name, value in fields.items() if name != "message"]
        message = str(fields["message"])
        lines = message.split("\n") if record.__dict__.get("is_block") else [message]
        shown = "\n    ".join(printable(line) for line in lines)
        return " ".join([at, f"{record.levelname:<7}", shown, *words])


class LineHandler(logging.Handler):
    """Writes the lines of records to a stream, in a thread of its own; `lost` counts those that found no room."""

    def __init__(self, stream: TextIO, queue_max: int = _QUEUE_MAX) -> None:
        super().__init__()
        self._stream = stream
        self._queue_max = queue_max
        self._queue: deque[str] = deque()
        self._wake, self._idle = threading.Event(), threading.Event()
        self._is_closed = False
        self.lost = 0
        self._unsaid = 0
        self._thread = threading.Thread(target=self._run, name="router-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`; never raises and never waits."""
        try:
            if self._unsaid and len(self._queue) < self._queue_max:
                record.__dict__["lines_lost"], self._unsaid = self._unsaid, 0
            line = self.format(record)
        except Exception:  # a sink: a record that cannot be shown must not fail who said it
            line = '{"level": "error", "message": "a log record could not be shown"}'
        if self._is_closed or len(self._queue) >= self._queue_max:
            self.lost += 1
            self._unsaid += 1
            return
        self._idle.clear()
        self._queue.append(line)
        self._wake.set()

    def flush(self) -> None:
        """Wait until what was said is written, for two seconds at most."""
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._wake.set()
            self._idle.wait(_CLOSE_S)

    def close(self) -> None:
        """Write what is left, for two seconds at most."""
        self.flush()
        self._is_closed = True
        self._wake.set()
        super().close()

    def _run(self) -> None:
        while not self._is_closed or self._queue:
            lines: list[str] = []
            while self._queue and len(lines) < 1000:
                lines.append(self._queue.popleft())
            if lines:
                try:
                    self._stream.write("\n".join(lines) + "\n")
                    self._stream.flush()
                except (OSError, ValueError):  # closed, or a full disk behind it
                    self.lost += len(lines)
                continue
            self._idle.set()
            self._wake.wait(1.0)
            self._wake.clear()


class FailureLog:
    """A `seams.TraceSink` that says each failed request in one line. `clock` gives seconds, monotonic.

    A kind of failure is its code (or how it ended), its status and the lane. Each kind has ten lines, and one more a
    second; what was left out is said by the next line of the kind, or by `tick`.
    """

    _BURST = 10.0
    _KINDS_MAX = 500

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._kinds: dict[tuple[str, int, str], _Kind] = {}

    def write(self, trace: Trace) -> None:
        """Take a finished trace: for one that was served, two comparisons."""
        outcome = trace.outcome
        if outcome == "ok" or outcome in ("client_error", "client_closed", "shed"):
            return
        name = (trace.error_code or outcome, trace.status, trace.lane)
        kind = self._kinds.get(name)
        if kind is None:
            if len(self._kinds) >= self._KINDS_MAX:
                name = ("other", 0, "")
            kind = self._kinds.setdefault(name, _Kind(self._BURST, self._clock()))
        if not kind.may_speak(self._clock(), self._BURST):
            kind.left_out += 1
            return
        last = trace.attempts[-1] if trace.attempts else None
        _log.log(
            logging.ERROR if outcome == "internal_error" else logging.WARNING,
            "request failed: %s",
            outcome.replace("_", " "),
            extra={
                "event": "request_failed",
                "trace_id": trace.trace_id,
                "request_id": trace.request_id,
                "tenant": trace.tenant,
                "key": trace.key,
                "endpoint": trace.endpoint,
                "status": trace.status,
                "outcome": outcome,
                "error_code": trace.error_code,
                "error_type": trace.error_type,
                "upstream_status": None if last is None else last.status,
                "lane": trace.lane,
                "model": trace.model_sent,
                "attempts": len(trace.attempts),
                "duration_s": round(trace.duration_s, 4),
                "left_out": kind.left_out or None,
            },
        )
        kind.left_out = 0

    def close(self) -> None:
        """Say what was left out and has not been said."""
        for name in list(self._kinds):
            self._say_rest(name)

    def tick(self) -> None:
        """Say what was left out of kinds that have been quiet for long enough; forget those with nothing to say."""
        now_s = self._clock()
        for name, kind in list(self._kinds.items()):
            if now_s - kind.filled_s >= self._BURST:
                self._say_rest(name)
                del self._kinds[name]

    def _say_rest(self, name: tuple[str, int, str]) -> None:
        left_out, self._kinds[name].left_out = self._kinds[name].left_out, 0
        if left_out:
            code, status, lane = name
            extra = {"event": "requests_failed", "status": status, "error_code": code, "lane": lane}
            _log.warning("more requests failed like those before", extra={**extra, "left_out": left_out})


class _Kind:
    __slots__ = ("filled_s", "left_out", "lines")

    def __init__(self, lines: float, now_s: float) -> None:
        self.lines = lines
        self.filled_s = now_s
        self.left_out = 0

    def may_speak(self, now_s: float, burst: float) -> bool:
        self.lines = min(burst, self.lines + now_s - self.filled_s)
        self.filled_s = now_s
        if self.lines < 1:
            return False
        self.lines -= 1
        return True


def set_up_logging(form: str, level: str, stream: TextIO, secrets: Iterable[str | None] = ()) -> LineHandler:
    """Make this the log of the process: `form` and `level` are as in the settings.

    The level is that of what the router says. Libraries are heard from warnings on, for their words are not ours to
    vouch for. Uncaught exceptions, those of threads too, become a line. `secrets` are taken out wherever they stand.
    """
    handler = LineHandler(stream)
    handler.setFormatter(form_of(form, stream)(credential_rules(), [secret for secret in secrets if secret]))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    _log.setLevel(level.upper())
    logging.captureWarnings(True)
    sys.excepthook = lambda kind, error, trace: _unforeseen("the program", error)
    threading.excepthook = lambda args: _unforeseen(f"thread {args.thread and args.thread.name}", args.exc_value)
    sys.unraisablehook = lambda args: _unforeseen("a finalizer", args.exc_value)
    atexit.register(handler.close)
    return handler


def form_of(form: str, stream: TextIO) -> type[JsonLines] | type[TextLines]:
    """The lines of a `log_format` on this stream."""
    return JsonLines if form == "json" or (form == "auto" and not stream.isatty()) else TextLines


def credential_rules() -> tuple[Rule, ...]:
    """What is taken out of every text: credentials by their shape, and whatever stands behind the names of headers."""
    return (*read_rules("credentials"), *read_rules(json.dumps([_HEADER])))


def start_log(settings: Settings, stream: TextIO) -> LineHandler:
    """`set_up_logging` as the settings say, with the secrets that are in them."""
    secrets = [getattr(settings, name) for name in SECRETS]
    for url in (settings.cache, settings.affinity):
        password = urlsplit(url.partition("?")[0]).password
        secrets += [password, unquote(password)] if password else []
    return set_up_logging(settings.log_format, settings.log_level, stream, secrets)


def on_loop_error(_: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
    """An event loop's exception handler: what went wrong and where, without the words of the exception."""
    error = context.get("exception")
    _log.error(
        "event loop: %s",
        str(context.get("message", "")).partition("\n")[0],
        exc_info=(type(error), error, error.__traceback__) if isinstance(error, BaseException) else None,
        extra={"event": "unforeseen"},
    )


def report(trace_id: str, error: BaseException) -> None:
    """Say where an unforeseen error came from; its message is left out, because it may hold a client's words."""
    extra = {"event": "unforeseen", "trace_id": trace_id}
    _log.error("trace %s: unforeseen %s", trace_id, described(error), extra=extra)


def described(error: BaseException) -> str:
    """An exception as one text: type, places, and the message only where it is the system's; its cause behind it."""
    said: list[str] = []
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen and len(said) < 5:
        seen.add(id(at))
        words = f": {at}" if isinstance(at, _SAID_OUT_LOUD) else ""
        frames = traceback.extract_tb(at.__traceback__)[-20:]
        places = " < ".join(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in reversed(frames))
        said.append(f"{type(at).__name__}{words} at {places or 'no place'}")
        at = at.__cause__ or (None if at.__suppress_context__ else at.__context__)
    return " | because of ".join(said)


def printable(text: str) -> str:
    """`text` on one line of a terminal: a line end and what a terminal would obey become escapes, or one blank."""
    return "".join(char if char.isprintable() else _ESCAPED.get(char) or _escape(char) for char in text)


_ESCAPED = {"\n": "\\n", "\r": "\\r", "\t": " "}


def _escape(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _shown(value: object) -> str:
    text = printable(str(value))
    return text if text and " " not in text and '"' not in text else json.dumps(text)


def _unforeseen(where: str, error: BaseException | None) -> None:
    if error is None or isinstance(error, KeyboardInterrupt | SystemExit):
        return
    exc_info = (type(error), error, error.__traceback__)
    _log.critical("unforeseen error in %s", where, exc_info=exc_info, extra={"event": "unforeseen"})

"""The process that reads the trace store for the page: `python -m router.trace.reader_process FILE`.

The router starts it, talks to it over the socket that is its standard input (`frames`), and ends it by closing that
socket; so it ends with the router, however that ends. It imports what it needs to read and nothing else.

    in    {"n": 7, "ask": NAME, "args": {…}, "lane": LANE, "limit_s": 10.0, "wall_s": 60.0}   {"cancel": 7}
    out   {"ready": true}      {"n": 7, "head": {…}} and a body      {"n": 7, "error": {…}}      {"n": 7, "bug": PLACE}
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import traceback
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any

from router.errors import RouterError, TraceStoreError
from router.trace.asking import Answer, Question
from router.trace.frames import BrokenFrame, Frames, frame
from router.trace.question import left
from router.trace.reader_threads import Readers

_PIECE = 1 << 16


class Service:
    """Reads questions off `link` until it ends, and writes their answers in whatever order they come."""

    def __init__(self, link: socket.socket, path: Path) -> None:
        self._link = link
        self._readers = Readers(path)
        self._writing = threading.Lock()
        self._wanted: dict[int, threading.Event] = {}  # by number: set when the asker has gone

    def run(self) -> None:
        """Serve; returns when the router has closed its end."""
        frames = Frames()
        self._write(frame({"ready": True}))
        while data := self._link.recv(_PIECE):
            for head, _ in frames.feed(data):
                self._take(head)

    def _take(self, head: dict[str, Any]) -> None:
        if "cancel" in head:
            gone = self._wanted.get(head["cancel"])
            if gone is not None:
                gone.set()
            return
        number, gone = head["n"], threading.Event()
        self._wanted[number] = gone
        question = Question(head["ask"], head["args"], head["lane"], head["limit_s"], head["wall_s"])
        try:
            coming = self._readers.submit(question, lambda: left() if gone.is_set() else None)
        except TraceStoreError as error:
            coming = Future()
            coming.set_exception(error)
        coming.add_done_callback(lambda done: self._answer(number, done))

    def _answer(self, number: int, done: Future[Answer]) -> None:
        gone = self._wanted.pop(number)
        if not gone.is_set():
            self._write(written(number, done))

    def _write(self, data: bytes) -> None:
        with self._writing:
            self._link.sendall(data)


def written(number: int, done: Future[Answer]) -> bytes:
    """The frame that says how question `number` ended."""
    try:
        found = done.result()
        return frame({"n": number, "head": found.head}, found.body)
    except (RouterError, BrokenFrame) as failure:
        error = failure if isinstance(failure, RouterError) else _too_large(failure)
        said = {"code": error.code, "message": error.message, "hint": error.hint, "retryable": error.retryable}
        return frame({"n": number, "error": said})
    except (Exception, CancelledError) as error:  # a sink of sorts: one odd question must not end the others
        # without its message, which may quote a row
        places = [f"{each.filename}:{each.lineno} {each.name}" for each in traceback.extract_tb(error.__traceback__)]
        return frame({"n": number, "bug": f"{type(error).__name__} at {' < '.join(reversed(places))}"})


def _too_large(why: BrokenFrame) -> TraceStoreError:
    return TraceStoreError(f"the answer is too large: {why}", hint="ask for fewer things at once")


def main() -> None:
    """Serve on standard input until it ends."""
    try:
        link = socket.socket(fileno=os.dup(0))
    except OSError:
        sys.exit("this is a part of `router serve`, which starts it with a socket; to read traces use `router trace`")
    try:
        Service(link, Path(sys.argv[1])).run()
    except (OSError, BrokenFrame):
        pass  # the router has gone, or is no router
    finally:
        os._exit(0)  # nothing is written here: threads in the middle of a question need no goodbye


if __name__ == "__main__":
    main()

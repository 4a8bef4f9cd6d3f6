"""Questions to the trace store answered in threads of this process."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

from router.errors import TraceStoreError
from router.trace.asking import Answer, Question
from router.trace.question import left, stopping
from router.trace.reader_threads import Readers


class ThreadDesk:
    """An `asking.AnswerDesk` in this process: simple, and in the way of whatever else the process does."""

    def __init__(self, path: Path | str) -> None:
        self._readers = Readers(Path(path))
        self._is_closed = threading.Event()

    async def ask(self, question: Question) -> Answer:
        """See `asking.AnswerDesk`."""
        if self._is_closed.is_set():
            raise stopping()
        gone = threading.Event()

        def stop() -> TraceStoreError | None:
            if self._is_closed.is_set():
                return stopping()
            return left() if gone.is_set() else None

        coming = self._readers.submit(question, stop)
        try:
            return await asyncio.wrap_future(coming)
        except asyncio.CancelledError:
            asker = asyncio.current_task()
            if self._is_closed.is_set() and asker is not None and not asker.cancelling():  # it had no thread yet
                raise stopping() from None
            raise
        finally:
            gone.set()

    async def close(self) -> None:
        """See `asking.AnswerDesk`."""
        self._is_closed.set()
        self._readers.close()

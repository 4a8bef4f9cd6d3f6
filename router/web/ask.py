"""A question to the trace store on behalf of a client, who may leave before it is answered."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.types import Receive

from router.errors import ClientGone, TraceStoreError
from router.trace.asking import Answer, AnswerDesk, Question
from router.web.flush import SharedFlush
from router.web.turns import Turns


class Asker:
    """The way to the store for all rooms; `desk` None: traces are off."""

    def __init__(self, desk: AnswerDesk | None, flush: SharedFlush, turns: Turns) -> None:
        self._desk = desk
        self._flush = flush
        self._turns = turns

    @property
    def is_on(self) -> bool:
        """Whether there is a store."""
        return self._desk is not None

    def check(self) -> None:
        """Raises TraceStoreError when traces are off."""
        if self._desk is None:
            raise TraceStoreError("traces are off", hint="set `traces` to `sqlite:///router.db`")

    async def ask(self, question: Question) -> Answer:
        """The answer, out of what is in the store by now. Raises TraceStoreError or BadFilter."""
        self.check()
        assert self._desk is not None
        return await self._desk.ask(question)

    async def ask_for(self, request: Request, question: Question, *, in_turn: bool = False) -> Answer:
        """The answer for a client that waits for it, with all in it that has ended before; given up once it has left.

        `in_turn`: a question that reads much. Raises TraceStoreError, BadFilter, Busy or ClientGone.
        """
        self.check()
        asking = asyncio.ensure_future(self._flushed(question, in_turn=in_turn))
        leaving = asyncio.ensure_future(_left(request.receive))
        try:
            await asyncio.wait((asking, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                raise ClientGone("the client has left")
            return asking.result()
        finally:
            asking.cancel()
            leaving.cancel()

    async def _flushed(self, question: Question, *, in_turn: bool) -> Answer:
        await self._flush()
        if not in_turn:
            return await self.ask(question)
        async with self._turns.turn():
            return await self.ask(question)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass

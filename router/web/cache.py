"""The cache on the admin listener: its counts, and purges.

A purge changes what clients get, so it takes more than a form of another page can send: a body that says it is JSON,
and no `Origin` but this listener's own. The counts of a shared cache cost a look through all its keys, so a foreign
page may not ask for those either.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from router.cache.desk import CacheDesk, read_wanted
from router.errors import BadFilter
from router.web.answer import error_answer, json_answer
from router.web.gate import is_foreign, read_body, refuse_foreign

_MAX_BODY = 4_096
_MOST_AT_ONCE = 4  # each may look through a whole store


class CacheRooms:
    """The endpoints `GET /cache` and `POST /cache/purge`."""

    def __init__(self, desk: CacheDesk) -> None:
        self._desk = desk
        self._asking = 0

    async def show(self, request: Request) -> Response:
        """The counts of every process."""
        if is_foreign(request):
            return refuse_foreign()
        return await self._answer(self._desk.stats)

    async def purge(self, request: Request) -> Response:
        """Forget what the body names; answers when that is in force in every process it reports as told."""
        if is_foreign(request):
            return refuse_foreign()
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return error_answer(
                415, "invalid_request_error", "a purge is asked for with `content-type: application/json`"
            )
        body = await read_body(request, _MAX_BODY)
        if body is None:
            return error_answer(413, "request_too_large", f"a purge of over {_MAX_BODY} bytes")
        return await self._answer(partial(self._desk.purge, read_wanted(_json_object(body))))

    async def _answer(self, question: Callable[[], Awaitable[Mapping[str, Any]]]) -> Response:
        if self._asking >= _MOST_AT_ONCE:
            return error_answer(429, "rate_limit_error", f"{_MOST_AT_ONCE} questions about the cache are open already")
        self._asking += 1
        try:
            return json_answer(await question())
        finally:
            self._asking -= 1


def _json_object(body: bytes) -> Mapping[str, Any]:
    """The object that `body` is. Raises BadFilter, also for a name given twice: which of the two was meant?"""
    try:
        document = json.loads(body, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        raise BadFilter(
            "the body is not JSON", hint='expected an object such as `{"rule": "structured-work"}`'
        ) from None
    if not isinstance(document, dict):
        raise BadFilter("the body is not a JSON object", hint='expected one such as `{"rule": "structured-work"}`')
    return document


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise BadFilter("a name is given twice, expected once")
    return found

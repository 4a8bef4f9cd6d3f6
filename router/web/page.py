"""The files of the trace page, read once at the start: what is not among them has no address (S21)."""

from __future__ import annotations

import mimetypes
from collections.abc import Mapping
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from router.web.answer import error_answer

# The page reads its own address: these all serve the one document.
_ADDRESSES = ("/", "/overview", "/t/{some_id}")


def page_routes() -> list[BaseRoute]:
    """The routes of the page and of its files."""
    static = _static_files()

    async def page(_: Request) -> Response:
        return _file(static, "index.html")

    async def asset(request: Request) -> Response:
        return _file(static, request.path_params["name"])

    return [Route("/static/{name}", asset), *(Route(address, page) for address in _ADDRESSES)]


def _static_files() -> Mapping[str, tuple[bytes, str]]:
    found = {}
    for entry in files("router.web").joinpath("static").iterdir():
        kind = {"js": "text/javascript"}.get(entry.name.rpartition(".")[2]) or mimetypes.guess_type(entry.name)[0]
        if entry.is_file() and kind is not None:
            found[entry.name] = (entry.read_bytes(), kind)
    return found


def _file(static: Mapping[str, tuple[bytes, str]], name: str) -> Response:
    if name not in static:
        return error_answer(404, "not_found_error", "there is no such file")
    content, kind = static[name]
    return Response(content, media_type=kind, headers={"cache-control": "no-cache"})

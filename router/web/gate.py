"""Who may enter the admin listener, and how a browser logs in.

It fails closed: with a token set, only `/healthz` and `/readyz` answer without it. Without one (which the settings
allow on loopback only) requests must name the listener by address or as `localhost`, so that no web page can reach it
under a name of its own (DNS rebinding). Whatever is not a page is refused when a browser says that a page of another
site asks, whatever credential it brings along: it could not read the answer, but it could have it made again and again.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from router.web.answer import error_answer

_COOKIE = "router_admin"
_COOKIE_S = 12 * 3600
_OPEN_PATHS = ("/healthz", "/readyz")
# What a link on another site may lead to: the page and its parts, the form. All of it is cheap.
_PAGES = ("/", "/overview", "/login", "/logout", *_OPEN_PATHS)
_PAGES_BELOW = ("/t/", "/static/")
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_MAX_FORM = 4_096
_SAFE_HEADERS = (
    (b"content-security-policy", b"default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
_LOGIN = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>model-router: token</title></head>
<body><h1>model-router</h1><form method="post" action="/login">
<p><label>Admin token <input type="password" name="token" autocomplete="current-password" required autofocus></label>
<button>Open</button></p></form></body></html>
"""


class Gate:
    """Lets in who may enter, and puts the safe headers on whatever comes out; `token` None: whoever is on the host."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_SAFE_HEADERS]
            await send(message)

        refusal = self._refusal(Request(scope))
        await (refusal or self._app)(scope, receive, send_safely)

    def _refusal(self, request: Request) -> Response | None:
        path = request.scope["path"]
        if _is_page(path):
            # A form's `Origin` is `null`: the page sends no referrer. So only the other of the two is asked.
            if request.method not in _SAFE_METHODS and _is_sent_by_another_site(request):
                return refuse_foreign()
        elif is_foreign(request):
            return refuse_foreign()
        if path in _OPEN_PATHS or (path == "/login" and self._token is not None):
            return None
        if self._token is None:
            if _is_own_name(request.headers.get("host", "")):
                return None
            return error_answer(
                403,
                "permission_error",
                "this listener answers to its address or `localhost`; set `admin_token` for names",
            )
        if _may_enter(request, self._token):
            return None
        if "text/html" in request.headers.get("accept", "") and request.method == "GET":
            return login_page(401)
        refusal = error_answer(401, "authentication_error", "the admin token is missing or wrong")
        refusal.headers["www-authenticate"] = 'Bearer realm="router admin"'
        return refusal


def is_foreign(request: Request) -> bool:
    """Whether a browser says that a page of another origin asks.

    Both of its ways to say so are read: a page on another port of this host is of the same site, and old browsers send
    `Origin` alone. A program that is no browser sends neither.
    """
    host = request.headers.get("host", "").lower()
    return _is_sent_by_another_site(request) or any(
        origin.lower() not in (f"http://{host}", f"https://{host}") for origin in request.headers.getlist("origin")
    )


def refuse_foreign() -> Response:
    """What a page of another origin gets."""
    return error_answer(403, "permission_error", "a page of another site must not ask this listener")


def login_page(status: int = 200) -> Response:
    """The form for the token."""
    return Response(_LOGIN, status, media_type="text/html", headers={"cache-control": "no-store"})


async def log_in(request: Request, token: str | None) -> Response:
    """A cookie for whoever sends the token in a form."""
    if token is None:
        return RedirectResponse("/", 303)
    body = await read_body(request, _MAX_FORM)
    if body is None:
        return error_answer(413, "request_too_large", f"a log-in of over {_MAX_FORM} bytes")
    given = parse_qs(body.decode("utf-8", "replace")).get("token", [""])[0]
    if not _same(given, token):
        return login_page(401)
    answer = RedirectResponse("/", 303)
    answer.set_cookie(
        _COOKIE,
        _session(token),
        max_age=_COOKIE_S,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return answer


def log_out() -> Response:
    """Takes the cookie away."""
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(_COOKIE, httponly=True, samesite="strict")
    return answer


async def read_body(request: Request, most: int) -> bytes | None:
    """The body; None when it is over `most` bytes."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            return None
    return body


def _is_sent_by_another_site(request: Request) -> bool:
    return request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin")


def _is_page(path: str) -> bool:
    return path in _PAGES or path.startswith(_PAGES_BELOW)


def _is_own_name(host: str) -> bool:
    """Whether a Host header is an address or `localhost`: names that no foreign web page can have."""
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    if name.lower() == "localhost" or name.lower().endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def _may_enter(request: Request, token: str) -> bool:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and _same(given.strip(), token):
        return True
    try:
        morsel = SimpleCookie(request.headers.get("cookie", "")).get(_COOKIE)
    except CookieError:
        return False
    return morsel is not None and _same(morsel.value, _session(token))


def _session(token: str) -> str:
    """What the cookie holds: proof of the token, from which the token cannot be had."""
    return hmac.new(token.encode(), b"router admin page, cookie v1", hashlib.sha256).hexdigest()


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), expected.encode("utf-8", "replace"))

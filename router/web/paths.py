"""Paths of the API side: the policy in front, the endpoint behind, and spellings that are refused."""

from __future__ import annotations

import re
from urllib.parse import unquote

from router.errors import UnknownTarget

ROUTED = ("messages", "count_tokens", "batches")
_BATCHES = "/v1/messages/batches"
_DEFERRED = "/v1/messages/deferred/"
_CANCEL = re.compile(re.escape(_BATCHES) + r"/[^/]+/cancel")
_HARMLESS = ("GET", "HEAD", "OPTIONS", "DELETE")  # makes no batch, whatever the path


def split_policy(path: bytes) -> tuple[bytes, str | None]:
    """`/p/NAME/v1/…` → (`/v1/…`, NAME); any other path as it is."""
    if not path.startswith(b"/p/"):
        return path, None
    name, slash, rest = path[3:].partition(b"/")
    return slash + rest or b"/", unquote(name.decode("latin-1"))


def check_path(method: str, path: str) -> None:
    """Refuse another spelling of a path that is routed or metered: the upstream would read it as that path, and we not.

    Of the batches' paths, one that is no read and that we do not know is refused too: what the upstream takes there
    might make a batch. Raises UnknownTarget.
    """
    if (
        path.startswith(_BATCHES)
        and method not in _HARMLESS
        and not (method == "POST" and (path == _BATCHES or _CANCEL.fullmatch(path)))
    ):
        raise UnknownTarget(f"there is no such path: {method} {path[:128]}")
    if (
        path.isascii()
        and "%" not in path
        and "//" not in path
        and "/." not in path
        and ";" not in path
        and not path.endswith("/")
    ):
        return
    named = endpoint_of(method, path)
    meant = {endpoint_of(method, reading) for reading in _readings(path)}
    # Of a batch the id is in the path: in two spellings it would be two batches, and every item booked twice.
    if "batches" in meant | {named} or any(each in ROUTED and each != named for each in meant):
        raise UnknownTarget("the path is another spelling of one that is routed", hint="spell it plainly")


def _readings(path: str) -> set[str]:
    """The paths that a server may read another spelling as.

    Servers differ in whether they decode before they look for the end of the path and for `..`, in whether `..` takes
    away what is between two slashes, and in whether `;` begins parameters, which belong to no path.
    """
    decoded = unquote(path)
    spelled = {path, decoded, _ended(decoded)}
    return {
        _ended(_plain(each, is_merged=is_merged, is_cut=is_cut))
        for each in spelled
        for is_merged in (True, False)
        for is_cut in (True, False)
    }


def _ended(path: str) -> str:
    """What stands before a query, a fragment or a NUL."""
    for mark in "?#\0":
        path = path.partition(mark)[0]
    return path


def _plain(path: str, *, is_merged: bool, is_cut: bool) -> str:
    """The path that another spelling means; `is_cut`: without the parameters of its parts."""
    parts: list[str] = []
    for part in path.split("/"):
        plain = unquote(part)
        if is_cut:
            plain = plain.partition(";")[0]
        match plain:
            case "..":
                del parts[-1:]
            case "" if is_merged:
                pass
            case ".":
                pass
            case _:
                parts.append(plain)
    return "/" + "/".join(part for part in parts if part)


def endpoint_of(method: str, path: str) -> str:
    """What a trace calls `endpoint`; `wrong_method` where the path is routed and the method is not."""
    if path == "/v1/messages" or path == "/v1/messages/count_tokens":
        if method == "OPTIONS":
            return "passthrough"
        if method != "POST":
            return "wrong_method"
        return "messages" if path == "/v1/messages" else "count_tokens"
    if path.startswith(_BATCHES):
        return "batches"
    if path.startswith(_DEFERRED):
        return "deferred"
    if method == "GET" and (path == "/v1/models" or path.startswith("/v1/models/")):
        return "models"
    return "passthrough"

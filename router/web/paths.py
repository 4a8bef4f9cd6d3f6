"""Paths of the API side: the policy in front, the endpoint behind, and spellings that are refused."""

from __future__ import annotations

from urllib.parse import unquote

from router.errors import UnknownTarget

ROUTED = ("messages", "count_tokens", "batches")


def split_policy(path: bytes) -> tuple[bytes, str | None]:
    """`/p/NAME/v1/…` → (`/v1/…`, NAME); any other path as it is."""
    if not path.startswith(b"/p/"):
        return path, None
    name, slash, rest = path[3:].partition(b"/")
    return slash + rest or b"/", unquote(name.decode("latin-1"))


def check_path(method: str, path: str) -> None:
    """Refuse another spelling of a path that is routed or metered: the upstream would read it as that path, and we not.

    Raises UnknownTarget.
    """
    if path.isascii() and "%" not in path and "//" not in path and "/." not in path and not path.endswith("/"):
        return
    named = endpoint_of(method, path)
    readings = {_plain(each, is_merged=is_merged) for each in (path, unquote(path)) for is_merged in (True, False)}
    meant = {endpoint_of(method, reading) for reading in readings}
    # Of a batch the id is in the path: in two spellings it would be two batches, and every item booked twice.
    if "batches" in meant | {named} or any(each in ROUTED and each != named for each in meant):
        raise UnknownTarget("the path is another spelling of one that is routed", hint="spell it plainly")


def _plain(path: str, *, is_merged: bool) -> str:
    """The path that another spelling means. Servers differ in whether they decode before they take out `..`, and in
    whether `..` takes away what is between two slashes."""
    parts: list[str] = []
    for part in path.split("/"):
        match unquote(part):
            case "..":
                del parts[-1:]
            case "" if is_merged:
                pass
            case ".":
                pass
            case plain:
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
    if path.startswith("/v1/messages/batches"):
        return "batches"
    if method == "GET" and (path == "/v1/models" or path.startswith("/v1/models/")):
        return "models"
    return "passthrough"

"""A captured stream with the deltas of each block joined: a secret that the model said in two pieces is seen whole."""

from __future__ import annotations

import re
from typing import Any

import orjson

_EVENT_END = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2}")
_TEXTS = ("text", "partial_json", "thinking", "signature")
_STARTS = (b"event:", b"data:", b"id:", b"retry:", b":")
_Key = tuple[int | str | None, str | None, str]  # block, kind of delta, name of its text


def is_stream(answer: bytes) -> bool:
    """Whether these are server-sent events."""
    return answer.removeprefix(b"\xef\xbb\xbf").lstrip(b"\r\n").startswith(_STARTS)


def joined(stream: bytes) -> bytes:
    """The events, without pings; all deltas of a block are one, which stands where the block stops.

    What stands between the deltas of a block therefore comes before them. Blocks that never stop are at the end, the
    one that was written to last behind the others. An event at the end that is not whole is left out: what it begins
    may be the second half of a secret.
    """
    events: list[bytes] = []
    open_: dict[_Key, dict[str, Any]] = {}
    frames = _EVENT_END.split(stream)
    for number, frame in enumerate(frames, 1):
        event = frame.strip(b"\r\n")
        data = b"\n".join(line[5:].strip() for line in event.splitlines() if line.startswith(b"data:"))
        document = _document(data)
        if not event or document.get("type") == "ping" or re.match(rb"event: ?ping\s*(?:[\r\n]|\Z)", event):
            continue
        if number == len(frames) and not document:
            continue
        key = _key(document)
        if key is None:
            if document.get("type") == "content_block_stop":
                for each in [each for each in open_ if each[0] == _index(document)]:
                    events.append(_written(open_.pop(each)))
            events.append(event)
            continue
        text = document["delta"][key[2]]
        before = open_.pop(key, None)  # and back behind the others
        if before is None:
            document["delta"][key[2]] = [text]
            open_[key] = document
        else:
            before["delta"][key[2]].append(text)
            open_[key] = before
    events += [_written(each) for each in open_.values()]
    return b"\n\n".join(events) + b"\n\n"


def _document(data: bytes) -> dict[str, Any]:
    """What an event says; empty where that is no JSON object."""
    try:
        document = orjson.loads(data.decode("utf-8", "replace"))
    except orjson.JSONDecodeError:
        return {}
    return document if isinstance(document, dict) else {}


def _key(document: dict[str, Any]) -> _Key | None:
    """Which text an event adds to; None for an event that adds to none."""
    delta = document.get("delta")
    if document.get("type") != "content_block_delta" or not isinstance(delta, dict):
        return None
    name = next((name for name in _TEXTS if isinstance(delta.get(name), str)), None)
    kind = delta.get("type")
    return None if name is None else (_index(document), kind if isinstance(kind, str) else None, name)


def _index(document: dict[str, Any]) -> int | str | None:
    index = document.get("index")
    return index if isinstance(index, (int, str)) else None


def _written(document: dict[str, Any]) -> bytes:
    delta = document["delta"]
    for name in _TEXTS:
        if isinstance(delta.get(name), list):
            delta[name] = "".join(delta[name])
    return b"event: content_block_delta\ndata: " + orjson.dumps(document)

"""The Files API: uploads kept in memory, by workspace.

Source: files documentation; only files that skills or code execution made can be downloaded, so an upload cannot.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.parser import BytesParser
from email.policy import HTTP
from pathlib import PurePosixPath
from typing import Any

from router.simulator.dice import Dice
from router.simulator.refusal import Refusal, missing
from router.simulator.settings import SimulatorSettings

OLD_SHAPE_BETA = "files-api-2025-04-14"
SHORTEST_LIFE_S, LONGEST_LIFE_S = 3_600, 7_776_000
MAX_PAGE, DEFAULT_PAGE = 1_000, 20


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One uploaded file; times in seconds since 1970."""

    id: str
    filename: str
    mime_type: str
    content: bytes
    created_s: float
    expires_s: float | None

    def as_json(self, *, is_old_shape: bool) -> dict[str, Any]:
        """The file as the API shows it."""
        shown: dict[str, Any] = {
            "id": self.id,
            "type": "file",
            "filename": self.filename,
            "mime_type": self.mime_type,
            "size_bytes": len(self.content),
            "created_at": rfc3339(self.created_s),
            "downloadable": False,
        }
        if not is_old_shape:
            shown["expires_at"] = None if self.expires_s is None else rfc3339(self.expires_s)
        return shown


def rfc3339(seconds: float) -> str:
    """A time in seconds since 1970 as the API writes it."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class FileStore:
    """The files of every workspace."""

    def __init__(self, settings: SimulatorSettings) -> None:
        self._settings = settings
        self._dice = Dice(settings.seed, "files")
        self._files: dict[str, dict[str, StoredFile]] = {}
        self._count = 0

    def upload(self, workspace: str, content_type: str, body: bytes) -> StoredFile:
        """Keep the file of a multipart form; raises `Refusal` (400) for a form without one."""
        fields = read_form(content_type, body)
        if "file" not in fields:
            raise missing("file")
        filename, mime_type, content = fields["file"]
        lives = fields.get("expires_in_seconds")
        now_s = self._settings.clock()
        expires_s = None
        if lives is not None:
            text = lives[2].decode("latin-1").strip()
            if not text.isdigit() or not SHORTEST_LIFE_S <= int(text) <= LONGEST_LIFE_S:
                raise Refusal(f"expires_in_seconds: Input should be from {SHORTEST_LIFE_S} to {LONGEST_LIFE_S}")
            expires_s = now_s + int(text)
        self._count += 1
        file_id = self._dice.token(f"file/{self._count}", "file_")
        name = PurePosixPath(filename.replace("\\", "/")).name or "unnamed"
        stored = StoredFile(file_id, name, mime_type or "application/octet-stream", content, now_s, expires_s)
        self._files.setdefault(workspace, {})[file_id] = stored
        return stored

    def get(self, workspace: str, file_id: str) -> StoredFile:
        """A file by id; raises the 404 of an unknown, deleted or expired one."""
        stored = self._files.get(workspace, {}).get(file_id)
        if stored is None or (stored.expires_s is not None and stored.expires_s <= self._settings.clock()):
            raise Refusal(f"File not found: {file_id}", 404)
        return stored

    def delete(self, workspace: str, file_id: str) -> dict[str, Any]:
        """Forget a file."""
        self.get(workspace, file_id)
        del self._files[workspace][file_id]
        return {"id": file_id, "type": "file_deleted"}

    def page(self, workspace: str, query: Mapping[str, Any], ids: list[str]) -> dict[str, Any]:
        """One page of the workspace's files, newest first, or those named by `ids`."""
        now_s = self._settings.clock()
        alive = [
            stored
            for stored in reversed(list(self._files.get(workspace, {}).values()))
            if stored.expires_s is None or stored.expires_s > now_s
        ]
        if ids:
            if len(set(ids)) > 100:
                raise Refusal("ids: at most 100 entries are allowed")
            return {"data": [stored for stored in alive if stored.id in ids], "next_page": None}
        limit = page_size(query)
        start = 0
        cursor = query.get("page")
        if cursor:
            start = next((place for place, stored in enumerate(alive) if f"page_{stored.id}" == cursor), -1)
            if start < 0:
                raise Refusal("page: invalid cursor")
        shown = alive[start : start + limit]
        following = alive[start + limit :]
        return {"data": shown, "next_page": f"page_{following[0].id}" if following else None}

    def check_references(self, body: Mapping[str, Any], workspace: str) -> None:
        """Refuse a request that names a file this workspace does not have."""
        for file_id in _referenced(body):
            self.get(workspace, file_id)


def page_size(query: Mapping[str, Any]) -> int:
    """The `limit` of a list call: 20 unless told, 1 to 1000."""
    text = query.get("limit") or str(DEFAULT_PAGE)
    if not str(text).isdigit() or not 1 <= int(text) <= MAX_PAGE:
        raise Refusal(f"limit: Input should be from 1 to {MAX_PAGE}")
    return int(text)


def _referenced(body: Mapping[str, Any]) -> Iterator[str]:
    for message in body["messages"]:
        content = message.get("content")
        for block in content if isinstance(content, list) else []:
            source = block.get("source")
            if isinstance(source, dict) and source.get("type") == "file":
                yield str(source["file_id"])
            elif block["type"] == "container_upload":
                yield str(block["file_id"])


def read_form(content_type: str, body: bytes) -> dict[str, tuple[str, str, bytes]]:
    """The fields of a multipart form: name -> (file name, media type, bytes); raises `Refusal` (400)."""
    if not content_type.lower().startswith("multipart/form-data"):
        raise Refusal("content-type: expected multipart/form-data")
    head = f"content-type: {content_type}\r\n\r\n".encode("latin-1", "replace")
    message = BytesParser(policy=HTTP).parsebytes(head)
    boundary = message.get_boundary()
    if not boundary:
        raise Refusal("content-type: multipart/form-data without a boundary")
    fields: dict[str, tuple[str, str, bytes]] = {}
    # Split by hand: the parser of the standard library would rewrite line ends inside the file.
    for piece in body.split(b"--" + boundary.encode("latin-1", "replace"))[1:]:
        if piece.startswith(b"--"):
            break
        header, separator, content = piece.partition(b"\r\n\r\n")
        if not separator:
            raise Refusal("the multipart body is malformed")
        part = BytesParser(policy=HTTP).parsebytes(header.lstrip(b"\r\n") + b"\r\n\r\n", headersonly=True)
        name = part.get_param("name", header="content-disposition")
        if isinstance(name, str):
            mime_type = str(part["content-type"]) if part["content-type"] else ""
            fields[name] = (part.get_filename() or "", mime_type, content.removesuffix(b"\r\n"))
    return fields

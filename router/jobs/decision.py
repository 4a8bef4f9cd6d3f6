"""What was decided about one item of a Message Batch, as bytes: small, because there may be a hundred thousand.

Most items of a batch are decided alike. What many share (rule, lane, models, the facts that are the same for all) is
one entry by a name that no item can have, `#` and a number; an item's own entry holds that number and what differs.

What an answer is to be cached under stands there too: of the item its key, in the shared entry the rest. Both kinds of
entry are longer then, and a shared one has a version of its own.

Answers that were known when the batch was made are kept beside these entries, by names that begin with `KEPT` (see
`serve/batch_kept.py`). A store in memory takes none of those: they must outlast the process.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, field
from typing import Any

import orjson

_MOST_SHARED = 2_000  # shared entries that are known at a time: reasons may name numbers, which differ for each item
_MOST_LISTED = 500  # characters of one list of facts (names of tools); a longer one is left out, and so unknown
_VERSION = 1
_KEEPING_VERSION = 2  # of a shared entry whose items' answers are to be cached

KEPT = "#="


@dataclass(frozen=True, slots=True)
class Keeping:
    """What a rule says of keeping an item's answer: seconds, bytes at the most, and whose it is.

    `asked_at_ns` is when the batch was made, by the clock of the cache.
    """

    ttl_s: float
    max_bytes: int
    asked_at_ns: int
    tenant: str


@dataclass(frozen=True, slots=True)
class ItemDecision:
    """The decision about an item, in the words of `trace.record.Trace`.

    Where its answer is to be cached, `key` is the cache key and `keeping` says the rest.
    """

    policy: str
    revision: str
    rule: str
    lane: str
    model_asked: str
    model_sent: str
    client: str = ""
    session: str | None = None
    conversation: str | None = None
    why: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    edits: tuple[str, ...] = ()
    labels: Mapping[str, Any] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    key: str | None = None
    keeping: Keeping | None = None


class DecisionWriter:
    """Makes entries of decisions. `taken` gives those made since it was last called."""

    def __init__(self) -> None:
        self._shared: dict[tuple[tuple[object, ...], Keeping | None], tuple[int, Mapping[str, Any]]] = {}
        self._count = 0
        self._entries: dict[str, bytes] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, custom_id: str, decision: ItemDecision) -> None:
        """Note the decision about an item."""
        own = (
            *(decision.policy, decision.revision, decision.rule, decision.lane),
            *(decision.model_asked, decision.model_sent, decision.client, decision.session),
            *(decision.why, decision.tags, decision.edits),
        )
        keeping = decision.keeping
        said = {name: value for name, value in decision.facts.items() if type(value) is not list or _is_short(value)}
        known = self._shared.get((own, keeping))
        if known is None:
            known = self._share(own, said, keeping)
        number, facts = known
        other = {name: value for name, value in said.items() if name not in facts or facts[name] != value}
        gone = [name for name in facts if name not in said]
        # Lists are shorter than objects: [shared entry, conversation, labels, facts that differ, facts it has not, key]
        entry: list[object] = [number, decision.conversation, decision.labels, other, gone]
        if decision.key is not None:
            entry.append(decision.key)
        self._entries[custom_id] = _bytes(entry)

    def taken(self) -> Mapping[str, bytes]:
        """The entries that were made since the last call."""
        entries, self._entries = self._entries, {}
        return entries

    def _share(
        self, own: tuple[object, ...], facts: Mapping[str, Any], keeping: Keeping | None
    ) -> tuple[int, Mapping[str, Any]]:
        if len(self._shared) >= _MOST_SHARED:
            self._shared.clear()
        known = self._shared[own, keeping] = self._count, facts
        self._count += 1
        entry: list[object] = [_VERSION, *own, facts]
        if keeping is not None:
            entry = [_KEEPING_VERSION, *own, facts, list(astuple(keeping))]
        self._entries[f"#{known[0]}"] = _bytes(entry)
        return known


class DecisionReader:
    """Makes decisions of entries; shared entries are remembered for as long as the reader lives."""

    def __init__(self) -> None:
        self._shared: dict[str, list[Any] | None] = {}

    def missing(self, entries: Iterable[bytes]) -> list[str]:
        """The names of the shared entries that these need and that were not given yet."""
        return list(dict.fromkeys(name for entry in entries if (name := _shared_name(entry)) not in self._shared))

    def share(self, names: Iterable[str], entries: Mapping[str, bytes]) -> None:
        """Take note of shared entries; of `names`, those that are not there are none."""
        for name in names:
            value = _list(entries.get(name, b""))
            is_ours = (len(value), value[:1]) in ((13, [_VERSION]), (14, [_KEEPING_VERSION]))
            self._shared[name] = value if is_ours else None

    def decision(self, entry: bytes) -> ItemDecision | None:
        """What an item's entry says; None for one that cannot be read, or whose shared part is not there."""
        shared = self._shared.get(_shared_name(entry))
        if shared is None:
            return None
        _, conversation, labels, other, gone, *key = _list(entry)
        _, policy, revision, rule, lane, asked, sent, client, session, why, tags, edits, facts, *keeping = shared
        return ItemDecision(
            policy, revision, rule, lane, asked, sent, client, session, conversation,
            tuple(why), tuple(tags), tuple(edits), labels,
            {name: value for name, value in {**facts, **other}.items() if name not in gone},
            key[0] if key and keeping else None,
            Keeping(*keeping[0]) if key and keeping else None,
        )  # fmt: skip


def _is_short(texts: list[Any]) -> bool:
    return len("".join(map(str, texts))) <= _MOST_LISTED


def _shared_name(entry: bytes) -> str:
    value = _list(entry)
    return f"#{value[0]}" if len(value) in (5, 6) and isinstance(value[0], int) else ""


def _list(entry: bytes) -> list[Any]:
    try:
        value = orjson.loads(entry)
    except orjson.JSONDecodeError:
        return []
    return value if isinstance(value, list) else []


def _bytes(value: list[object]) -> bytes:
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:  # a count beyond 64 bits: it is said as text
        return orjson.dumps(_plain(value), default=str)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return "a huge number"
    return value

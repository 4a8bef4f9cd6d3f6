"""The weights file of the classifier, and how its rows are packed for fast sums.

All fourteen weights of a feature are packed into one Python integer with 16 bits a field, so a sum over features is one
`sum()` over big integers: the only arithmetic that is fast in pure Python. Negative fields borrow from their left
neighbour; adding half of each field's range before unpacking pays every debt back, so the sums are exact. Look-ups in a
cold cache are most of the cost: rows are short, words are shared objects, and the file's order, most frequent first,
keeps what most requests touch close together.

The file: the magic line, then zlib over one JSON header line, the feature names one a line, and 14 int8 a feature.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from struct import Struct
from typing import Any

from router.classify.features import Key, kind_and_key
from router.classify.label import TASKS

MAGIC = b"router-classifier 2\n"
# A feature's weights: one for each task, for the lane, for difficulty, and for the gate of its place.
LANE, DIFFICULTY = len(TASKS), len(TASKS) + 1
HEADS = len(TASKS) + 2
GATE = HEADS
FIELDS = HEADS + 1
_FIELDS = Struct(f"<{FIELDS}h")
_DEBT = sum(1 << (16 * at + 15) for at in range(FIELDS))
# Rows that one sum may hold: 255 times 128 still fits a field.
MOST_ROWS = 255
# The vocabulary: for each kind of feature its keys, each with its packed weights.
Rows = tuple[dict[Key, int], ...]


def pack_weights(header: Mapping[str, Any], features: Iterable[bytes], rows: bytes) -> bytes:
    """The weights file: header (`unit`, `bias`, `gate_bias`, `calibration`), feature names, 14 int8 a feature."""
    listed = list(features)
    text = json.dumps({**header, "features": len(listed)}, sort_keys=True).encode()
    return MAGIC + zlib.compress(text + b"\n" + b"\n".join(listed) + b"\n" + rows, 9)


def read_weights(weights: bytes) -> tuple[dict[str, Any], Rows]:
    """Header, and by kind a packed integer a feature; raises `ValueError`, `KeyError`, `TypeError` or `zlib.error`."""
    if not weights.startswith(MAGIC):
        raise ValueError("no classifier file, or one of another version")
    text, _, rest = zlib.decompress(weights[len(MAGIC) :]).partition(b"\n")
    header = json.loads(text)
    count = int(header["features"])
    parts = rest.split(b"\n", count)
    if len(parts) != count + 1 or len(parts[-1]) != count * FIELDS:
        raise ValueError("the file is cut short")
    one_row = Struct(f"{FIELDS}b")
    rows: Rows = ({}, {})
    same = dict[bytes, bytes]().setdefault  # one object a word: a pair finds its words where the word itself was found
    for name, row in zip(parts, one_row.iter_unpack(parts[-1]), strict=False):
        kind, key = kind_and_key(name)
        key = (same(key[0], key[0]), same(key[1], key[1])) if isinstance(key, tuple) else same(key, key)
        rows[kind][key] = (int.from_bytes(_FIELDS.pack(*row), "little") ^ _DEBT) - _DEBT
    return header, rows


def unpack(total: int) -> tuple[int, ...]:
    """The signed fields of a sum of at most `MOST_ROWS` packed rows."""
    return _FIELDS.unpack((total + _DEBT ^ _DEBT).to_bytes(_FIELDS.size, "little"))

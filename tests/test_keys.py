"""The file of client keys: found by the whole key, refused with file and line."""

from __future__ import annotations

import hashlib

import pytest

from router.errors import SettingsError
from router.keys import read_keys

HASH = hashlib.sha256(b"sk-a").hexdigest()
GOOD = f"""\
keys:
  - name: search-team
    sha256: {HASH}
    tenant: search
    policy: cheap
  - {{name: chat, sha256: {hashlib.sha256(b"sk-b").hexdigest()}, tenant: chat}}
"""


def test_a_key_is_found_by_all_of_itself():
    """Never by a prefix, never by its hash (S2)."""
    ring = read_keys("keys.yaml", GOOD.encode())
    assert len(ring) == 2
    found = ring.find(b"sk-a")
    assert found is not None
    assert (found.name, found.tenant, found.policy) == ("search-team", "search", "cheap")
    other = ring.find(b"sk-b")
    assert other is not None
    assert other.policy is None
    assert list(ring.tied()) == [("search-team", "cheap")]
    for wrong in (b"", b"sk-", b"sk-aa", b"SK-A", HASH.encode()):
        assert ring.find(wrong) is None


def test_a_key_may_have_a_limit():
    """How many of its requests may be under way; another key has none."""
    ring = read_keys("keys.yaml", GOOD.replace("policy: cheap", "limits: {concurrent: 20}").encode())
    limited, other = ring.find(b"sk-a"), ring.find(b"sk-b")
    assert limited is not None
    assert other is not None
    assert (limited.max_concurrent, other.max_concurrent) == (20, None)


BAD = {
    "limits that are no mapping": (GOOD.replace("policy: cheap", "limits: 5"), 2, "`limits` is a mapping"),
    "an unknown limit": (GOOD.replace("policy: cheap", "limits: {parallel: 5}"), 2, "`limits` is a mapping"),
    "a limit of nothing": (GOOD.replace("policy: cheap", "limits: {concurrent: 0}"), 2, "a whole number from 1"),
    "a limit that is a word": (GOOD.replace("policy: cheap", "limits: {concurrent: many}"), 2, "a whole number from 1"),
    "a limit of true": (GOOD.replace("policy: cheap", "limits: {concurrent: true}"), 2, "a whole number from 1"),
    "an unknown top key": ("key:\n  - {}\n", 1, "unknown key `key`"),
    "no list": ("keys: {}\n", 1, "must be a list"),
    "no mapping": ("keys:\n  - text\n", 2, "mapping"),
    "an unknown field": (GOOD.replace("tenant: search\n", "tenants: search\n"), 2, "unknown field `tenants`"),
    "no tenant": (GOOD.replace("    tenant: search\n", ""), 2, "`tenant` must be a text"),
    "a number as tenant": (GOOD.replace("tenant: search\n", "tenant: 5\n"), 2, "`tenant` must be a text"),
    "a number as policy": (GOOD.replace("policy: cheap\n", "policy: 5\n"), 2, "`policy` must be a text"),
    "a short hash": (GOOD.replace(HASH, HASH[:-1] ), 2, "64 hex digits"),
    "an upper-case hash": (GOOD.replace(HASH, '"' + HASH.upper() + '"'), 2, "64 hex digits"),
    "the key itself": (GOOD.replace(HASH, "sk-a"), 2, "64 hex digits"),
    "the same key twice": (GOOD + f"  - {{name: again, sha256: {HASH}, tenant: x}}\n", 7, "listed twice"),
    "a duplicate field": (GOOD.replace("    tenant: search\n", "    tenant: a\n    tenant: b\n"), 5, "tenant"),
    "no YAML": ("keys: [\n", 2, ""),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_with_its_line(name):
    """File, line and reason; never the key itself."""
    text, line, reason = BAD[name]
    with pytest.raises(SettingsError) as caught:
        read_keys("keys.yaml", text.encode())
    assert f"keys.yaml:{line}:" in caught.value.message
    assert reason in caught.value.message


@pytest.mark.parametrize("text", ["", "\n", "# only a comment\n", "keys: []\n", "{}\n"])
def test_a_file_without_keys_is_refused(text):
    """Nobody could get in: more likely a mistake than a wish."""
    with pytest.raises(SettingsError):
        read_keys("keys.yaml", text.encode())

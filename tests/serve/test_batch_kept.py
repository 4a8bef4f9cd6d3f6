"""Kept lines of a batch in every store: all of them or an error; counts spliced, whatever stands around them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.redis_server import RedisServer

from router.errors import JobsUnavailable
from router.jobs.decision import KEPT
from router.jobs.redis import RedisDecisions
from router.jobs.sqlite import SqliteDecisions
from router.redis_link import RedisLink
from router.seams import BatchDecisions
from router.serve.batch_kept import PIECE_BYTES, Kept, KeptAnswers, KeptLines, KeptWriter, with_items

pytestmark = pytest.mark.anyio

# What `KeptAnswers` reads of a policy set: no rule caches, or one does so in batches.
NO_RULE: Any = SimpleNamespace(revision="none", policies={})
RULE: Any = SimpleNamespace(cache=SimpleNamespace(in_batches=True))
ONE_RULE: Any = SimpleNamespace(revision="one", policies={"default": SimpleNamespace(rules=(RULE,))})


@pytest.fixture(params=["sqlite", "redis"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[BatchDecisions]:
    if request.param == "sqlite":
        sqlite = SqliteDecisions(tmp_path / "jobs.db")
        yield sqlite
        await sqlite.close()
        return
    server: RedisServer = request.getfixturevalue("redis_server")
    link = RedisLink(server.url, deadline_s=2.0)
    yield RedisDecisions(link)
    await link.close()


async def kept(store: BatchDecisions, lines: list[bytes], ticket: str = "t", batch: str = "b") -> bool:
    """Write lines and link their batch."""
    writer = KeptWriter(store, ticket)
    for line in lines:
        await writer.add(line)
    is_kept = await writer.finish()
    await store.link(ticket, batch, "anna")
    return is_kept


async def whole(lines: KeptLines) -> list[bytes]:
    """The pieces, to the last one."""
    pieces = []
    while piece := await lines.read():
        pieces.append(piece)
    return pieces


def answers(store: BatchDecisions, policies: Any = NO_RULE) -> KeptAnswers:
    return KeptAnswers(store, SimpleNamespace(current=policies))


@pytest.mark.parametrize("sizes", [[10], [PIECE_BYTES], [PIECE_BYTES - 1, 2, 3], [5 * PIECE_BYTES, 7], [9_000] * 60])
async def test_what_was_written_is_read_by_another_in_pieces(store: BatchDecisions, sizes: list[int]):
    """Lines of any size, in pieces of a bounded one; nobody takes them for entries of items, nor misses them."""
    lines = [bytes([97 + n % 26]) * (size - 1) + b"\n" for n, size in enumerate(sizes)]
    assert await kept(store, lines)
    assert await store.some("b", 10) == {}
    reader = answers(store)
    assert await reader.of("b") == Kept(len(lines), sum(sizes), -(-sum(sizes) // PIECE_BYTES))
    found = await reader.lines("b")
    assert found is not None
    pieces = await whole(found)
    assert b"".join(pieces) == b"".join(lines)
    assert max(map(len, pieces)) <= PIECE_BYTES
    assert await reader.of("another") is None
    assert store.stats()["missing"] == 0


@pytest.mark.parametrize("spoiled", [f"{KEPT}0", f"{KEPT}1", f"{KEPT}2"])
async def test_a_piece_that_is_gone_or_short_is_no_end(store: BatchDecisions, spoiled: str):
    """The reader fails there, or at the end: the bytes are counted."""
    await kept(store, [b"x" * (2 * PIECE_BYTES + 9) + b"\n"])
    await store.put("t", {spoiled: b"short"})
    found = await answers(store).lines("b")
    assert found is not None
    with pytest.raises(JobsUnavailable):
        await whole(found)


@pytest.mark.parametrize("entry", [b"[2,1,1,1]", b"[1]", b"{", b"7", b'"text"'])
async def test_an_entry_that_nobody_understands_is_not_taken_for_none(store: BatchDecisions, entry: bytes):
    """One of a later version, say: the batch has more than can be told."""
    await store.put("t", {KEPT: entry})
    await store.link("t", "b", "anna")
    with pytest.raises(JobsUnavailable):
        await answers(store).of("b")
    assert await answers(store).of("b", is_needed=False) is None


async def test_a_store_in_memory_takes_decisions_and_no_answers():
    """They would be gone with the process, and the batch would look complete."""
    store = SqliteDecisions(None)
    assert await store.put("t", {"a": b"1"})
    assert not await kept(store, [b"line\n"])
    await store.close()


async def test_only_where_there_can_be_answers_an_unreadable_store_is_an_error(tmp_path: Path):
    """What a policy once said is remembered; what was read once is too."""
    store = SqliteDecisions(tmp_path / "jobs.db")
    await kept(store, [b"line\n"])
    never, now, knows = answers(store), answers(store, ONE_RULE), answers(store)
    policies: Any = SimpleNamespace(current=ONE_RULE)
    once = KeptAnswers(store, policies)
    assert once.can_be()
    policies.current = NO_RULE
    assert await knows.of("b") == Kept(1, 5, 1)
    await store.close()
    assert await never.of("b") is None
    assert await knows.of("b") == Kept(1, 5, 1)
    for reader in (now, once):
        with pytest.raises(JobsUnavailable):
            await reader.of("b")
        assert await reader.of("b", is_needed=False) is None


COUNTS = st.fixed_dictionaries(
    {"processing": st.integers(0, 10**6), "succeeded": st.integers(0, 10**6)},
    optional={"errored": st.integers(0, 9), "a_new_kind": st.text(max_size=5)},
)
WRITERS: list[Callable[[object], str]] = [json.dumps, lambda value: json.dumps(value, indent=2, ensure_ascii=False)]


@given(COUNTS, st.sampled_from(["in_progress", "canceling", "ended"]), st.text(max_size=9), st.sampled_from(WRITERS))
def test_only_one_number_of_a_batch_changes(counts, status, text, write):
    """Property: `processing` until it has ended, then `succeeded`; every other byte stays."""
    batch = {"id": text, "request_counts": counts, "processing_status": status, "x": {"processing": 1}}
    expected = {**batch, "request_counts": dict(counts)}
    expected["request_counts"]["succeeded" if status == "ended" else "processing"] += 7
    assert with_items(write(batch).encode("utf-8", "replace"), 7) == write(expected).encode("utf-8", "replace")


@pytest.mark.parametrize("batch", [b"{}", b'{"request_counts":null}', b'{"request_counts":{"processing":"1"}}', b"[]"])
def test_a_batch_that_counts_otherwise_stays_as_it_is(batch: bytes):
    """Nothing is made up."""
    assert with_items(batch, 7) == batch

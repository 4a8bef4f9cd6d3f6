"""A pushed set in the store: it stands before the folder's, until the folder changes or the push is taken back."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from router.errors import PolicyError
from router.policy.check import revision_of
from router.policy.compile import PolicySet
from router.policy.folder import read_folder
from router.policy.history import PolicyHistory
from router.policy.store import PolicyStore

Compile = Callable[[dict[str, bytes]], PolicySet]
pytestmark = pytest.mark.anyio

LANES = b"version: 1\nlanes: {it: {model: claude-haiku-5-5}}\ndefault_lane: it\n"


def files(name: str) -> dict[str, bytes]:
    policy = f"version: 1\nrules: [{{name: {name}, route: it}}]\notherwise: as-asked\n"
    return {"lanes.yaml": LANES, "default.yaml": policy.encode()}


def put(folder: Path, name: str) -> None:
    folder.mkdir(exist_ok=True)
    for file, data in files(name).items():
        (folder / file).write_bytes(data)


def rule_of(store: PolicyStore) -> str:
    return store.current.policies["default"].rules[0].name


async def no_wait(_: float) -> None:
    """Settling without waiting."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    put(tmp_path / "policies", "own")
    return tmp_path / "policies"


@pytest.fixture
def heard() -> list[tuple[bool, str]]:
    return []


@pytest.fixture
def store(folder: Path, compile_files: Compile, heard: list[tuple[bool, str]]) -> PolicyStore:
    made = PolicyStore(
        folder, compile_files, sleep=no_wait, now=lambda: 1000.0, observe=lambda took, what: heard.append((took, what))
    )
    made.load()
    heard.clear()
    return made


async def test_a_pushed_set_serves_and_the_folder_waits(
    store: PolicyStore, folder: Path, compile_files: Compile, heard: list[tuple[bool, str]]
) -> None:
    """The status says where it is from; looking at an unchanged folder, even by SIGHUP, changes nothing."""
    own = store.current
    await store.take_pushed(files("pushed"), 3, compile_files)
    assert (rule_of(store), store.pushed, store.source) == ("pushed", 3, "pushed #3")
    assert not await store.poll()
    assert not await store.reload()
    status = store.status()
    assert (status["source"], status["is_current"], status["folder_revision"]) == ("pushed #3", True, own.revision)
    assert read_folder(folder) == files("own")
    await store.drop_pushed()
    assert store.current is own
    assert (store.source, store.pushed) == ("folder", 0)
    assert heard == [(True, revision_of(files("pushed"))), (True, own.revision)]


async def test_what_does_not_compile_is_refused_and_nothing_changes(
    store: PolicyStore, compile_files: Compile, heard: list[tuple[bool, str]]
) -> None:
    """Diagnostics, or a bug while compiling: the set in force stays, and the folder is not blamed."""
    before = store.current
    with pytest.raises(PolicyError, match=r"default\.yaml"):
        await store.take_pushed({"lanes.yaml": LANES, "default.yaml": b"rules: ["}, 1, compile_files)
    with pytest.raises(PolicyError, match="ZeroDivisionError"):
        await store.take_pushed(files("pushed"), 1, lambda _: 1 / 0)  # type: ignore[arg-type,return-value]
    assert store.current is before
    assert (store.pushed, store.status()["is_current"]) == (0, True)
    assert [took for took, _ in heard] == [False, False]


@pytest.mark.parametrize("name", ["newer", "pushed"])
async def test_a_change_of_the_folder_is_newer_than_the_push(
    store: PolicyStore, folder: Path, compile_files: Compile, name: str
) -> None:
    """Also when it is the very text that was pushed: from then on it is the folder's."""
    await store.take_pushed(files("pushed"), 1, compile_files)
    put(folder, name)
    await store.poll()
    assert (rule_of(store), store.pushed, store.source) == (name, 0, "folder")
    await store.drop_pushed()
    assert rule_of(store) == name


async def test_a_folder_that_goes_and_comes_back_is_no_change(
    store: PolicyStore, folder: Path, compile_files: Compile
) -> None:
    """Unreadable or broken meanwhile: that is said, and forgotten when it is as it was when the push came."""
    await store.take_pushed(files("pushed"), 1, compile_files)
    os.rename(folder, folder.with_name("away"))
    assert not await store.poll()
    assert not store.status()["is_current"]
    os.rename(folder.with_name("away"), folder)
    assert not await store.poll()
    assert (rule_of(store), store.status()["is_current"]) == ("pushed", True)
    (folder / "default.yaml").write_bytes(b"rules: [")
    assert not await store.poll()
    assert (rule_of(store), store.status()["is_current"]) == ("pushed", False)
    put(folder, "own")
    assert not await store.poll()
    assert (rule_of(store), store.status()["is_current"]) == ("pushed", True)


async def test_over_a_broken_folder_the_push_serves_until_it_is_mended(
    folder: Path, compile_files: Compile, tmp_path: Path
) -> None:
    """A start from the history, a push over it; a broken folder stays wrong, and mended it is newer."""
    history = PolicyHistory(tmp_path / "history", folder, now=lambda: 1000.0)
    PolicyStore(folder, compile_files, history=history).load()
    (folder / "default.yaml").write_bytes(b"rules: [")
    store = PolicyStore(folder, compile_files, sleep=no_wait, history=history)
    store.load()
    assert (rule_of(store), store.source) == ("own", "history")
    await store.take_pushed(files("pushed"), 1, compile_files)
    assert (store.status()["from_history"], store.status()["is_current"]) == (False, False)
    await store.drop_pushed()
    assert (rule_of(store), store.source, store.status()["from_history"]) == ("own", "history", True)
    await store.take_pushed(files("pushed"), 2, compile_files)
    put(folder, "own")
    await store.poll()
    assert (rule_of(store), store.source, store.status()["is_current"]) == ("own", "folder", True)
    assert [entry.revision for entry in history.entries()] == [revision_of(files("own"))]


async def test_the_set_in_force_is_not_compiled_again(store: PolicyStore, compile_files: Compile) -> None:
    """A push of what serves already is a matter of its number."""
    before = store.current

    def never(_: object) -> PolicySet:
        raise AssertionError

    await store.take_pushed(files("own"), 5, never)
    assert store.current is before
    assert store.source == "pushed #5"

"""The store: real files changed in every way people and machines change them; the last good set keeps serving."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from router.errors import PolicyError
from router.policy.compile import PolicySet
from router.policy.folder import read_folder
from router.policy.store import PolicyStore

LANES = (
    b"version: 1\nlanes: {haiku: {model: claude-haiku-5-5}, sonnet: {model: claude-sonnet-5-5}}\ndefault_lane: sonnet\n"
)
pytestmark = pytest.mark.anyio


def policy(lane: str) -> bytes:
    return f"version: 1\nrules: []\notherwise: {lane}\n".encode()


def fill(folder: Path, lane: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "lanes.yaml").write_bytes(LANES)
    (folder / "default.yaml").write_bytes(policy(lane))
    return folder


def lane_of(policies: PolicySet) -> str:
    return policies.policies["default"].rules[-1].outcomes[0].route[0].name


async def no_wait(_: float) -> None:
    """Settling without waiting."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return fill(tmp_path / "policies", "haiku")


@pytest.fixture
def store(folder: Path, compile_files: Callable[[dict[str, bytes]], PolicySet]) -> PolicyStore:
    made = PolicyStore(folder, compile_files, sleep=no_wait, now=lambda: 1000.0)
    made.load()
    return made


async def test_a_save_is_taken(store: PolicyStore, folder: Path) -> None:
    """A changed file is a new revision; an unchanged folder is nothing."""
    first = store.current
    assert not await store.poll()
    assert store.current is first
    (folder / "default.yaml").write_bytes(policy("sonnet"))
    assert await store.poll()
    assert lane_of(store.current) == "sonnet"
    assert lane_of(first) == "haiku"  # a request that began with it keeps it
    assert store.status()["revision"] == store.current.revision != first.revision


@pytest.mark.parametrize(
    "content",
    [b"", b"# only a comment\n", b"version: 1\nrules: []\n", b"version: 1\nrules: [\n", policy("gemini"), b"\xff\xfe",
     b"[" * 20_000],
    ids=["empty", "comment", "cut", "syntax", "unknown lane", "encoding", "deep"],
)  # fmt: skip
async def test_a_broken_save_is_refused_and_the_last_good_set_serves(
    store: PolicyStore, folder: Path, content: bytes
) -> None:
    """Nothing a file can hold takes the router down; the status says what is wrong, the repair clears it."""
    good = store.current
    (folder / "default.yaml").write_bytes(content)
    assert not await store.poll()
    assert store.current is good
    status = store.status()
    assert "default.yaml" in status["last_error"]
    assert (status["failures"], status["is_current"], status["last_error_at"]) == (1, False, 1000.0)
    assert not await store.poll()  # the same broken text is not compiled again and again
    assert store.status()["failures"] == 1
    (folder / "default.yaml").write_bytes(policy("sonnet"))
    assert await store.poll()
    assert store.status()["last_error"] == ""
    assert store.status()["is_current"]


async def test_undoing_a_broken_save_clears_the_error(store: PolicyStore, folder: Path) -> None:
    """Back to the text in force: the same set, no error."""
    good = store.current
    (folder / "default.yaml").write_bytes(b"")
    await store.poll()
    (folder / "default.yaml").write_bytes(policy("haiku"))
    await store.poll()
    assert store.current is good
    assert store.status()["is_current"]


async def test_a_file_that_is_renamed_over_is_taken(store: PolicyStore, folder: Path, tmp_path: Path) -> None:
    """Editors write beside and rename; the date of the new file may be older than the old one's."""
    (tmp_path / "new").write_bytes(policy("sonnet"))
    os.utime(tmp_path / "new", (1, 1))
    os.replace(tmp_path / "new", folder / "default.yaml")
    assert await store.poll()
    assert lane_of(store.current) == "sonnet"


async def test_a_folder_that_goes_away_and_comes_back(store: PolicyStore, folder: Path) -> None:
    """Missing folder, missing file, empty folder: each is refused once, and the return of the same files clears it."""
    good = store.current
    (folder / "lanes.yaml").unlink()
    assert not await store.poll()
    assert "no `lanes.yaml`" in store.status()["last_error"]
    shutil.rmtree(folder)
    for _ in range(3):
        assert not await store.poll()
    assert "cannot be read" in store.status()["last_error"]
    assert store.status()["failures"] == 2
    os.mkdir(folder)
    assert not await store.poll()
    assert "holds no policy" in store.status()["last_error"]
    fill(folder, "haiku")
    await store.poll()
    assert store.current is good
    assert store.status()["is_current"]


async def test_a_config_map_swap_is_one_version(
    tmp_path: Path, compile_files: Callable[[dict[str, bytes]], PolicySet]
) -> None:
    """Files behind `..data`, swapped by renaming the link: the new version whole, never a mix of two."""
    mount = tmp_path / "mount"
    os.mkdir(mount)
    for version, lane in (("..one", "haiku"), ("..two", "sonnet")):
        fill(mount / version, lane)
    os.symlink("..one", mount / "..data")
    for name in ("lanes.yaml", "default.yaml"):
        os.symlink(Path("..data") / name, mount / name)
    store = PolicyStore(mount, compile_files, sleep=no_wait)
    store.load()
    assert lane_of(store.current) == "haiku"
    for target, lane in (("..two", "sonnet"), ("..one", "haiku")) * 3:
        os.symlink(target, mount / "..new")
        os.replace(mount / "..new", mount / "..data")
        assert await store.poll()
        assert lane_of(store.current) == lane


async def test_a_file_half_written_is_not_looked_at(
    folder: Path, compile_files: Callable[[dict[str, bytes]], PolicySet]
) -> None:
    """The folder is compiled only once it has been the same for a moment; a slow writer is waited for."""
    text = policy("sonnet")
    compiled: list[bytes] = []

    def record(files: dict[str, bytes]) -> PolicySet:
        compiled.append(files["default.yaml"])
        return compile_files(files)

    written = 1

    async def write_on(_: float) -> None:
        """While the store settles, the writer writes on."""
        nonlocal written
        if written < len(text):
            written = min(written + 5, len(text))
            (folder / "default.yaml").write_bytes(text[:written])

    store = PolicyStore(folder, record, sleep=write_on)
    store.load()
    (folder / "default.yaml").write_bytes(text[:1])
    assert await store.poll()
    assert compiled == [policy("haiku"), text]


async def test_a_folder_that_never_rests_is_given_up_for_now(
    folder: Path, compile_files: Callable[[dict[str, bytes]], PolicySet]
) -> None:
    """An endless writer is said so; when it rests, the next look takes its last word."""
    rounds = 0

    async def rewrite(_: float) -> None:
        nonlocal rounds
        rounds += 1
        if rounds < 200:
            (folder / "default.yaml").write_bytes(policy("sonnet") + b"#" * rounds)

    store = PolicyStore(folder, compile_files, sleep=rewrite)
    store.load()
    (folder / "default.yaml").write_bytes(policy("sonnet"))
    assert not await store.poll()
    assert "keeps changing" in store.status()["last_error"]
    rounds = 200
    assert await store.poll()
    assert lane_of(store.current) == "sonnet"


def test_a_bad_folder_stops_the_start(folder: Path, compile_files: Callable[[dict[str, bytes]], PolicySet]) -> None:
    """At the start there is no last good set: every diagnostic is raised."""
    (folder / "default.yaml").write_bytes(policy("gemini"))
    store = PolicyStore(folder, compile_files)
    with pytest.raises(PolicyError, match="unknown lane `gemini`"):
        store.load()
    with pytest.raises(PolicyError, match="no policies loaded"):
        _ = store.current
    with pytest.raises(PolicyError, match="cannot be read"):
        PolicyStore(folder / "nowhere", compile_files).load()


async def test_a_forced_reload_says_whether_the_folder_is_in_force(store: PolicyStore, folder: Path) -> None:
    """SIGHUP looks at once; unchanged and good is good, broken is not."""
    assert await store.reload()
    (folder / "default.yaml").write_bytes(b"")
    assert not await store.reload()
    assert not await store.reload()
    assert store.status()["failures"] == 2


async def test_a_bug_in_compiling_does_not_end_the_watch(store: PolicyStore, folder: Path) -> None:
    """What should never happen is counted and shown, and the old set serves."""
    good = store.current

    def fail(_: object) -> PolicySet:
        raise ZeroDivisionError

    store._compile = fail  # the one way to have a bug on order
    (folder / "default.yaml").write_bytes(policy("sonnet"))
    assert not await store.poll()
    assert "bug of the router" in store.status()["last_error"]
    assert store.current is good


async def test_a_listener_hears_of_every_reload(
    folder: Path, compile_files: Callable[[dict[str, bytes]], PolicySet]
) -> None:
    """Logs and metrics are told: taken and which revision, or refused and why."""
    heard: list[tuple[bool, str]] = []
    store = PolicyStore(folder, compile_files, sleep=no_wait, observe=lambda took, what: heard.append((took, what)))
    store.load()
    (folder / "default.yaml").write_bytes(policy("gemini"))
    await store.poll()
    assert heard[0] == (True, store.current.revision)
    assert heard[1][0] is False
    assert "gemini" in heard[1][1]
    assert len(heard) == 2


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("nowhere", path)])
async def test_what_is_not_a_file_is_refused_by_name(
    store: PolicyStore, folder: Path, make: Callable[[Path], None]
) -> None:
    """A folder, a pipe (which would block whoever opens it) or a dead link in a policy's place."""
    make(folder / "blue.yaml")
    assert not await store.poll()
    assert "blue.yaml: not a file" in store.status()["last_error"]


def test_only_policy_files_are_read(folder: Path) -> None:
    """Schemas, notes and editors' leavings in the folder are no policies."""
    for name in ("policy.schema.json", "README.md", ".default.yaml.swp", ".hidden.yaml", "default.yaml~"):
        (folder / name).write_bytes(b"x")
    assert sorted(read_folder(folder)) == ["default.yaml", "lanes.yaml"]


@pytest.mark.parametrize("replace_folder", [False, True], ids=["a saved file", "a replaced folder"])
async def test_the_watch_takes_a_save_by_itself(
    folder: Path, compile_files: Callable[[dict[str, bytes]], PolicySet], replace_folder: bool
) -> None:
    """Through the real watch: a save is live well under a second, and the watch survives its folder's replacement."""
    taken = asyncio.Event()
    store = PolicyStore(
        folder, compile_files, poll_s=0.2, settle_s=0.01, observe=lambda took, _: taken.set() if took else None
    )
    store.load()
    taken.clear()
    stop = asyncio.Event()
    task = asyncio.create_task(store.run(stop))
    try:
        if replace_folder:
            os.rename(folder, folder.with_name("old"))
            os.rename(fill(folder.with_name("next"), "sonnet"), folder)
        else:
            (folder / "default.yaml").write_bytes(policy("sonnet"))
        await asyncio.wait_for(taken.wait(), 10)
        assert lane_of(store.current) == "sonnet"
        taken.clear()
        (folder / "default.yaml").write_bytes(policy("haiku"))
        await asyncio.wait_for(taken.wait(), 10)
        assert lane_of(store.current) == "haiku"
    finally:
        stop.set()
        await asyncio.wait_for(task, 10)

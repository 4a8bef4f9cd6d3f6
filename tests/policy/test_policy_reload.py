"""Reloading as faults know it (F66 to F78, S25): whatever happens to the folder, the last good set serves."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from router.catalog.lookup import Catalog
from router.errors import PolicyError
from router.policy.check import check_folder, revision_of
from router.policy.compile import PolicySet
from router.policy.folder import read_folder
from router.policy.history import ROLLBACK_MARK, PolicyHistory, roll_back
from router.policy.store import PolicyStore

Compile = Callable[[dict[str, bytes]], PolicySet]
MODELS = ("claude-haiku-5-5", "claude-sonnet-5-5")
BLOCKED_S = 0.05
pytestmark = pytest.mark.anyio


def version(number: int) -> dict[str, bytes]:
    """Two files that belong together: any mix of two versions compiles, and is seen by rule and model."""
    lanes = f"version: 1\nlanes: {{it: {{model: {MODELS[number % 2]}}}}}\ndefault_lane: it\n"
    policy = f"version: 1\nrules: [{{name: rule-{number}, route: it}}]\notherwise: as-asked\n"
    return {"lanes.yaml": lanes.encode(), "default.yaml": policy.encode()}


def put(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


def number_of(policies: PolicySet) -> int:
    """Which version a set is; fails when it is a mix of two."""
    number = int(policies.policies["default"].rules[0].name.removeprefix("rule-"))
    assert policies.lanes["it"].model == MODELS[number % 2]
    assert policies.revision == revision_of(version(number))
    return number


async def no_wait(_: float) -> None:
    """Settling without waiting."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    put(tmp_path / "policies", version(0))
    return tmp_path / "policies"


@pytest.fixture
def history(tmp_path: Path, folder: Path) -> PolicyHistory:
    return PolicyHistory(tmp_path / "history", folder, now=time.time)


async def test_what_came_into_force_is_in_the_history(
    folder: Path, history: PolicyHistory, compile_files: Compile
) -> None:
    """A start and each reload; what is refused is not."""
    store = PolicyStore(folder, compile_files, sleep=no_wait, history=history)
    store.load()
    put(folder, version(1))
    assert await store.poll()
    (folder / "default.yaml").write_bytes(b"rules: [")
    assert not await store.poll()
    revisions = [revision_of(version(number)) for number in (1, 0)]
    assert [(entry.revision, entry.how) for entry in history.entries()] == list(
        zip(revisions, ("reload", "start"), strict=True)
    )
    status = store.status()
    assert [entry["revision"] for entry in status["history"]] == revisions
    assert status["from_history"] is False
    assert history.files(revisions[0]) == version(1)


@pytest.mark.parametrize("fault", ["broken", "missing", "empty", "rollback cut short"])
async def test_a_start_with_a_broken_folder_serves_the_last_good_set_and_says_so(
    folder: Path, history: PolicyHistory, compile_files: Compile, fault: str
) -> None:
    """Across a restart: diagnostics and the revision used are told; the repaired folder is taken as usual."""
    for number in (1, 2):
        put(folder, version(number))
        PolicyStore(folder, compile_files, history=history).load()
    if fault == "broken":
        (folder / "default.yaml").write_bytes(b"version: 1\nrules: []\notherwise: gemini\n")
    elif fault == "rollback cut short":
        (folder / ROLLBACK_MARK).write_bytes(b"")
    else:
        shutil.rmtree(folder)
        if fault == "empty":
            os.mkdir(folder)
    heard: list[tuple[bool, str]] = []
    store = PolicyStore(
        folder, compile_files, sleep=no_wait, history=history, observe=lambda took, what: heard.append((took, what))
    )
    assert number_of(store.load()) == 2
    [(took, what)] = heard
    assert not took
    assert f"revision {revision_of(version(2))} of " in what
    assert "from the history" in what
    status = store.status()
    assert (status["from_history"], status["is_current"]) == (True, False)
    assert status["last_error"] == what
    assert not await store.poll()
    assert number_of(store.current) == 2
    (folder / ROLLBACK_MARK).unlink(missing_ok=True)
    put(folder, version(3))
    assert await store.poll()
    assert number_of(store.current) == 3
    assert store.status()["from_history"] is False
    assert store.status()["is_current"]


async def test_a_set_that_no_longer_compiles_is_passed_over(
    folder: Path, history: PolicyHistory, compile_files: Compile
) -> None:
    """A newer version of the router may refuse what an older one took; damaged and replaced sets come last too."""
    bad = {**version(1), "default.yaml": b"version: 1\nrules: []\notherwise: gone\n"}
    for files, how in ((version(1), "start"), (version(2), "replaced"), (bad, "reload")):
        assert history.record(revision_of(files), files, how)
    shutil.rmtree(folder)
    store = PolicyStore(folder, compile_files, history=history)
    assert number_of(store.load()) == 1


def test_a_bad_first_start_raises_within_seconds(folder: Path, history: PolicyHistory, compile_files: Compile) -> None:
    """F77: without a history there is nothing to serve."""
    (folder / "default.yaml").write_bytes(b"")
    started = time.monotonic()
    with pytest.raises(PolicyError, match=r"default\.yaml: the file holds nothing"):
        PolicyStore(folder, compile_files, history=history).load()
    assert time.monotonic() - started < 5


async def test_a_history_that_cannot_be_written_costs_no_reload(
    folder: Path, tmp_path: Path, compile_files: Compile
) -> None:
    """The disk is full or read-only: policies go on."""
    (tmp_path / "history").write_bytes(b"")
    history = PolicyHistory(tmp_path / "history", folder, now=time.time)
    store = PolicyStore(folder, compile_files, sleep=no_wait, history=history)
    store.load()
    put(folder, version(1))
    assert await store.poll()
    assert store.status()["history_store"]["failures"] == 2
    assert store.status()["is_current"]


async def test_a_rollback_is_taken_whole(folder: Path, history: PolicyHistory, compile_files: Compile) -> None:
    """While it lasts the folder is not read; after it the old revision is in force."""
    store = PolicyStore(folder, compile_files, sleep=no_wait, history=history)
    store.load()
    put(folder, {**version(1), "extra.yaml": version(1)["default.yaml"]})
    assert await store.poll()
    (folder / ROLLBACK_MARK).write_bytes(b"")
    put(folder, {"default.yaml": version(5)["default.yaml"]})
    assert not await store.poll()
    assert "cut short" in store.status()["last_error"]
    roll_back(folder, history.files(revision_of(version(0))), "x")
    assert await store.poll()
    assert number_of(store.current) == 0
    assert list(store.current.policies) == ["default"]


def test_a_file_written_a_byte_at_a_time_is_refused_or_whole(catalog: Catalog) -> None:
    """F73: even a writer slower than the settling never makes a set that says something else."""
    text = b"version: 1\nrules:\n  - name: one\n    when: {stream: true}\n    route: it\notherwise: [it, as-asked]\n"
    lanes = version(0)["lanes.yaml"]
    for length in range(len(text) - 1):
        checked = check_folder({"lanes.yaml": lanes, "default.yaml": text[:length]}, catalog=catalog, classify=None)
        assert checked.policies is None, text[:length]


async def test_a_deleted_file_that_is_written_anew_is_taken(folder: Path, compile_files: Compile) -> None:
    """F74: delete and recreate, with the date of the old file."""
    store = PolicyStore(folder, compile_files, sleep=no_wait)
    store.load()
    before = os.stat(folder / "default.yaml")
    for name in version(1):
        (folder / name).unlink()
    put(folder, version(1))
    os.utime(folder / "default.yaml", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert await store.poll()
    assert number_of(store.current) == 1


async def test_a_change_that_leaves_size_and_date_is_taken(folder: Path, compile_files: Compile) -> None:
    """F74: it is the content that counts."""
    store = PolicyStore(folder, compile_files, sleep=no_wait)
    store.load()
    before = os.stat(folder / "default.yaml")
    data = version(2)["default.yaml"]
    assert len(data) == before.st_size
    (folder / "default.yaml").write_bytes(data)
    os.utime(folder / "default.yaml", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert await store.poll()
    assert number_of(store.current) == 2


async def test_a_file_that_may_not_be_read_is_refused(folder: Path, compile_files: Compile) -> None:
    """F75: permission denied; the last good set serves."""
    if os.geteuid() == 0:
        pytest.skip("root may read every file")
    store = PolicyStore(folder, compile_files, sleep=no_wait)
    store.load()
    (folder / "default.yaml").chmod(0)
    assert not await store.poll()
    assert "ermission denied" in store.status()["last_error"]
    (folder / "default.yaml").chmod(stat.S_IRUSR | stat.S_IWUSR)
    put(folder, version(1))
    assert await store.poll()


async def test_a_hundred_swaps_a_second_end_with_the_newest(folder: Path, compile_files: Compile) -> None:
    """F74: through the real watch, in two stores at once: none takes a mix, the last version is live soon after."""
    ends = [asyncio.Event(), asyncio.Event()]
    stores: list[PolicyStore] = []
    seen: list[int] = []

    def observe(place: int, took: bool) -> None:
        if took and len(stores) > place:
            seen.append(number_of(stores[place].current))
            if seen[-1] == 100:
                ends[place].set()

    for place in range(2):
        stores.append(
            PolicyStore(folder, compile_files, poll_s=0.2, observe=lambda took, _, place=place: observe(place, took))
        )
        stores[place].load()
    stop = asyncio.Event()
    tasks = [asyncio.create_task(store.run(stop)) for store in stores]
    try:
        wait = asyncio.Event()
        for number in range(1, 101):
            for name, data in version(number).items():
                (folder / f".{name}").write_bytes(data)
                os.replace(folder / f".{name}", folder / name)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(wait.wait(), 0.01)
        written_s = time.monotonic()
        await asyncio.wait_for(asyncio.gather(*(end.wait() for end in ends)), 10)
        assert time.monotonic() - written_s < 2
    finally:
        stop.set()
        await asyncio.wait_for(asyncio.gather(*tasks), 10)


def bomb() -> bytes:
    levels = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    levels += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    return "\n".join(levels).encode()


def rules(count: int, rest: str) -> bytes:
    listed = "".join(f"  - {{name: r{number}, {rest}}}\n" for number in range(count))
    return f"version: 1\nrules:\n{listed}otherwise: it\n".encode()


REGEX_BOMB = "when: {header.x-a: {matches: '((a{0,100}){0,100}){0,100}'}}, route: it"
FAULTS = {
    "50 MB": lambda: b"# " + b"x" * 50_000_000,
    "100,000 rules": lambda: rules(100_000, "route: it"),
    "1,000 rules, all wrong": lambda: rules(1000, "when: {input_token: 1}, route: its"),
    "12,000 unknown keys": lambda: b"".join(b"k%d: 1\n" % number for number in range(12_000)),
    "alias bomb": bomb,
    "20,000 deep": lambda: b"a: " + b"[" * 20_000,
    "20,000 deep mapping": lambda: b"{a: " * 20_000,
    "a tag": lambda: b"version: !!python/object/apply:os.system ['true']\nrules: []\notherwise: it\n",
    "regex bomb": lambda: rules(20, REGEX_BOMB),
    "50,000 digits": lambda: b"version: " + b"1" * 50_000 + b"\nrules: []\notherwise: it\n",
    "50,000 digits and points": lambda: b"version: " + b"1." * 25_000 + b"\nrules: []\notherwise: it\n",
    "50,000 underscores": lambda: b"version: 1" + b"_" * 50_000 + b"x\nrules: []\notherwise: it\n",
    "base 60 without end": lambda: b"version: " + b"1:" * 25_000 + b"\nrules: []\notherwise: it\n",
    "a date without end": lambda: b"version: 2026-11-22 " + b"1 " * 25_000 + b"\nrules: []\notherwise: it\n",
    "300,000 lines of one text": lambda: b"a: |\n" + b" x\n" * 300_000,
    "a regex of 900 kB": lambda: rules(1, f"when: {{user: {{matches: '{'(a|b)*c?' * 100_000}'}}}}, route: it"),
    "9,000 unknown facts": lambda: rules(1, f"when: {{{', '.join(f'k{n}: 1' for n in range(9000))}}}, route: it"),
    "one line of 1 MB": lambda: b'version: "' + b"a" * 1_000_000 + b'"\nrules: []\notherwise: it\n',
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_nothing_a_file_holds_blocks_the_loop(fault: str, folder: Path, compile_files: Compile) -> None:
    """F68, F72, S25: refused within a second, off the loop: a ticker of 1 ms never waits for over 50 ms.

    The best of a few runs counts: what the machine does besides is not the policy's doing.
    """
    store = PolicyStore(folder, compile_files, sleep=no_wait)
    store.load()
    (folder / "default.yaml").write_bytes(FAULTS[fault]())
    best_gap_s = best_s = 99.0
    for _ in range(12):
        gap_s, stop = 0.0, asyncio.Event()

        async def tick(stop: asyncio.Event = stop) -> None:
            nonlocal gap_s
            while not stop.is_set():
                before = time.perf_counter()
                await asyncio.sleep(0.001)  # the ticker itself: its lateness is what is measured
                gap_s = max(gap_s, time.perf_counter() - before)

        ticking = asyncio.create_task(tick())
        started_s = time.perf_counter()
        assert not await store.reload()
        best_s = min(best_s, time.perf_counter() - started_s)
        stop.set()
        await ticking
        best_gap_s = min(best_gap_s, gap_s)
        if best_gap_s < BLOCKED_S and best_s < 1:
            break
    assert number_of(store.current) == 0
    assert best_s < 1, f"{best_s:.3f} s"
    assert best_gap_s < BLOCKED_S, f"{best_gap_s * 1000:.0f} ms"
    print(f"{fault}: {best_s * 1000:.0f} ms, loop blocked {best_gap_s * 1000:.1f} ms")


async def test_a_file_name_that_is_no_text_is_refused_and_the_watch_goes_on(
    folder: Path, history: PolicyHistory, compile_files: Compile
) -> None:
    """A name that is not UTF-8 is a failure like any other: it prints, the last set serves, the next save is taken."""
    store = PolicyStore(folder, compile_files, sleep=no_wait, history=history)
    store.load()
    odd = os.fsencode(folder) + b"/\xff.yaml"
    put(folder, {os.fsdecode(b"\xff.yaml"): version(0)["default.yaml"]})
    assert not await store.poll()
    status = store.status()
    assert (status["failures"], number_of(store.current)) == (1, 0)
    assert "a policy cannot be called `·`" in status["last_error"]
    json.dumps(status, ensure_ascii=False).encode()
    os.remove(odd)
    os.mkdir(odd)
    assert not await store.poll()
    assert "·.yaml: not a file" in store.status()["last_error"]
    store.status()["last_error"].encode()
    os.rmdir(odd)
    put(folder, version(1))
    assert await store.poll()
    assert number_of(store.current) == 1


@pytest.mark.parametrize("what", ["compiling", "observing", "settling"])
async def test_no_bug_ends_the_watch(folder: Path, compile_files: Compile, what: str) -> None:
    """Whatever one look raises is a failure in the status; the look after it takes the folder."""
    is_broken = False
    taken = asyncio.Event()

    def compile_or_fail(files: dict[str, bytes]) -> PolicySet:
        if is_broken and what == "compiling":
            raise UnicodeError("bug")
        return compile_files(files)

    def observe(took: bool, _: str) -> None:
        if is_broken and what == "observing":
            raise KeyError("bug")
        if took and not is_broken:
            taken.set()

    async def settle(_: float) -> None:
        if is_broken and what == "settling":
            raise ZeroDivisionError

    store = PolicyStore(folder, compile_or_fail, sleep=settle, poll_s=0.02, observe=observe)
    store.load()
    taken.clear()
    is_broken = True
    put(folder, version(1) if what != "observing" else {"default.yaml": b"rules: ["})
    await store.poll()
    await store.poll()
    status = store.status()
    assert status["failures"] == 1
    assert status["last_error"]
    assert number_of(store.current) == 0
    stop = asyncio.Event()
    task = asyncio.create_task(store.run(stop))
    try:
        is_broken = False
        put(folder, version(2))
        await asyncio.wait_for(taken.wait(), 5)
        assert number_of(store.current) == 2
    finally:
        stop.set()
        await asyncio.wait_for(task, 5)


def test_a_lane_whose_model_ends_is_a_warning(catalog: Catalog, folder: Path, compile_files: Compile) -> None:
    """It serves, and is said: in what `check` prints and in the status."""
    model = next(model for model in catalog.models if model.lifecycle == "deprecated" and model.retires)
    text = f"version: 1\nlanes:\n  it: {{model: {model.id}}}\ndefault_lane: it\n"
    files = {**version(0), "lanes.yaml": text.encode()}
    checked = check_folder(files, catalog=catalog, classify=None)
    assert checked.policies is not None
    [warning] = checked.warnings
    assert (warning.file, warning.line, warning.col) == ("policies/lanes.yaml", 3, 15)
    assert model.retires is not None
    assert model.retires in warning.message
    put(folder, files)
    store = PolicyStore(folder, compile_files)
    store.load()
    assert model.retires in store.status()["warnings"][0]
    assert read_folder(folder) == files

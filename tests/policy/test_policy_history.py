"""The history: every revision that was in force can be had again, and nothing else ever comes out of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from router.errors import PolicyError
from router.policy.check import revision_of
from router.policy.folder import read_folder
from router.policy.history import ROLLBACK_MARK, PolicyHistory, roll_back


class Clock:
    """Time that moves by a minute at each look."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        self.now_s += 60
        return self.now_s


def files(number: int) -> dict[str, bytes]:
    return {"lanes.yaml": b"lanes", "default.yaml": b"version %d" % number}


@pytest.fixture
def history(tmp_path: Path) -> PolicyHistory:
    return PolicyHistory(tmp_path / "history", tmp_path / "policies", now=Clock())


def record(history: PolicyHistory, number: int, how: str = "reload") -> str:
    revision = revision_of(files(number))
    assert history.record(revision, files(number), how)
    return revision


def test_what_was_recorded_comes_back_newest_first(history: PolicyHistory) -> None:
    """Files byte for byte, by the revision or the beginning of it."""
    assert history.entries() == []
    made = [record(history, number, how) for number, how in enumerate(("start", "reload", "rollback", "replaced"))]
    assert [entry.revision for entry in history.entries()] == made[::-1]
    assert [entry.how for entry in history.entries()] == ["replaced", "rollback", "reload", "start"]
    assert history.files(made[0]) == files(0)
    assert history.files(made[1][:8]) == files(1)


def test_the_same_revision_again_only_renews_its_time(history: PolicyHistory) -> None:
    """A restart is no new revision."""
    first, second = record(history, 1), record(history, 2)
    assert record(history, 1, "start") == first
    assert [(entry.revision, entry.how) for entry in history.entries()] == [(first, "start"), (second, "reload")]


def test_a_router_that_takes_a_rollback_leaves_it_called_one(tmp_path: Path) -> None:
    """The reload that follows within seconds is the same event."""
    history = PolicyHistory(tmp_path, tmp_path / "policies", now=lambda: 1000.0)
    record(history, 1, "rollback")
    record(history, 1, "reload")
    assert [entry.how for entry in history.entries()] == ["rollback"]


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    """Bounded: 20 unless told otherwise, and no unfinished folder stays."""
    history = PolicyHistory(tmp_path, tmp_path / "policies", now=Clock())
    made = [record(history, number) for number in range(25)]
    assert [entry.revision for entry in history.entries()] == made[:4:-1]
    assert sorted(os.listdir(history.folder)) == sorted(made[5:])


def test_an_ambiguous_or_unknown_revision_says_what_there_is(history: PolicyHistory) -> None:
    """The next step stands in the hint."""
    with pytest.raises(PolicyError, match="no revision `ab`") as caught:
        history.files("ab")
    assert "holds none" in caught.value.hint
    known = [record(history, number) for number in range(18)]
    with pytest.raises(PolicyError, match="no revision `zz`") as caught:
        history.files("zz")
    assert known[0] in caught.value.hint
    twice = next(one[0] for one in known if sum(other[0] == one[0] for other in known) > 1)
    with pytest.raises(PolicyError, match="begins several revisions"):
        history.files(twice)
    with pytest.raises(PolicyError, match="no revision"):
        history.files("")


@pytest.mark.parametrize("damage", ["truncate", "remove", "meta", "garbage"])
def test_a_damaged_revision_is_never_used_and_can_be_recorded_again(history: PolicyHistory, damage: str) -> None:
    """A full disk or a crash may leave anything; the name is the hash of the files."""
    revision = record(history, 1)
    place = history.folder / revision
    if damage == "truncate":
        (place / "default.yaml").write_bytes(b"version")
    elif damage == "remove":
        (place / "default.yaml").unlink()
    elif damage == "meta":
        (place / "meta.json").unlink()
    else:
        (place / "meta.json").write_bytes(b'{"revision": 1, "taken_at": "soon"')
    with pytest.raises(PolicyError):
        history.files(revision)
    record(history, 1)
    assert history.files(revision) == files(1)


def test_histories_of_different_folders_do_not_mix(tmp_path: Path) -> None:
    """Two folders of the same name have subfolders of their own; a link to the next version keeps its history."""
    one, two = (PolicyHistory(tmp_path / "h", tmp_path / name / "policies", now=Clock()) for name in ("a", "b"))
    record(one, 1)
    assert two.entries() == []
    assert one.folder.name.startswith("policies-")
    assert one.folder.name != two.folder.name
    os.makedirs(tmp_path / "v1")
    os.makedirs(tmp_path / "v2")
    os.symlink("v1", tmp_path / "current")
    before = PolicyHistory(tmp_path / "h", tmp_path / "current", now=Clock()).folder
    os.unlink(tmp_path / "current")
    os.symlink("v2", tmp_path / "current")
    assert PolicyHistory(tmp_path / "h", tmp_path / "v1" / ".." / "current", now=Clock()).folder == before


def test_a_history_that_cannot_be_written_is_said_once_and_counted(tmp_path: Path) -> None:
    """A file stands where the folder should be (which stops root too); when it is gone, all is well again."""
    said: list[str] = []
    (tmp_path / "history").write_bytes(b"")
    history = PolicyHistory(tmp_path / "history", tmp_path / "policies", now=Clock(), say=said.append)
    for number in range(3):
        assert not history.record(revision_of(files(number)), files(number), "reload")
    assert history.entries() == []
    assert len(said) == 1
    assert "cannot be written" in said[0]
    assert history.status() == {"folder": str(history.folder), "failures": 3, "last_error": said[0]}
    (tmp_path / "history").unlink()
    record(history, 1)
    assert history.status()["last_error"] == ""


def test_several_processes_may_write_at_once(tmp_path: Path) -> None:
    """Workers record the same revisions at the same moment: all are there, whole, and nothing is left over."""
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom router.policy.check import revision_of\n"
        "from router.policy.history import PolicyHistory\n"
        "history = PolicyHistory(Path(sys.argv[1]), Path(sys.argv[1]) / 'policies', now=time.time)\n"
        "for number in range(40):\n"
        "    files = {'lanes.yaml': b'lanes', 'default.yaml': b'version %d' % (number % 25)}\n"
        "    assert history.record(revision_of(files), files, 'reload'), history.status()\n"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stderr=subprocess.PIPE) for _ in range(3)
    ]
    for process in running:
        assert process.communicate(timeout=60)[1] == b""
        assert process.returncode == 0
    history = PolicyHistory(tmp_path, tmp_path / "policies", now=Clock())
    entries = history.entries()
    assert 15 <= len(entries) <= 20  # one process may take away what another has just renewed
    for entry in entries:
        assert revision_of(history.files(entry.revision)) == entry.revision
    assert not [name for name in os.listdir(history.folder) if name.startswith(".")]


def test_rolling_back_leaves_exactly_the_files_of_the_revision(tmp_path: Path) -> None:
    """What the revision does not have goes; what is no policy stays."""
    for name in ("default.yaml", "extra.yaml", "notes.md", "policy.schema.json"):
        (tmp_path / name).write_bytes(b"old")
    assert roll_back(tmp_path, files(1), "abc") == ["default.yaml", "extra.yaml", "lanes.yaml"]
    assert read_folder(tmp_path) == files(1)
    assert sorted(os.listdir(tmp_path)) == ["default.yaml", "lanes.yaml", "notes.md", "policy.schema.json"]
    assert roll_back(tmp_path, files(1), "abc") == []


def test_a_rollback_cut_short_at_any_step_is_never_served_and_can_be_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash at each rename in turn: the folder is the old one, the new one, or not read at all."""
    new = {**files(2), "lanes.yaml": b"other lanes", "blue.yaml": b"blue"}
    real = os.replace
    for steps in range(4):
        folder = tmp_path / str(steps)
        folder.mkdir()
        for name, data in files(1).items():
            (folder / name).write_bytes(data)
        left = steps

        def replace(source: Path, target: Path) -> None:
            nonlocal left
            if not left:
                raise KeyboardInterrupt  # the one way out that nothing tidies up after
            left -= 1
            real(source, target)

        monkeypatch.setattr(os, "replace", replace)
        if steps < 3:
            with pytest.raises(KeyboardInterrupt):
                roll_back(folder, new, "abc")
            with pytest.raises(PolicyError, match="cut short"):
                read_folder(folder)
        monkeypatch.setattr(os, "replace", real)
        roll_back(folder, new, "abc")
        assert read_folder(folder) == new
        assert not (folder / ROLLBACK_MARK).exists()


def test_a_mounted_config_map_and_links_are_not_rolled_back(tmp_path: Path) -> None:
    """The next start of the pod would undo it; the message says where the change belongs."""
    (tmp_path / "..one").mkdir()
    os.symlink("..one", tmp_path / "..data")
    with pytest.raises(PolicyError, match="ConfigMap"):
        roll_back(tmp_path, files(1), "abc")
    other = tmp_path / "other"
    other.mkdir()
    os.symlink(tmp_path / "nowhere.yaml", other / "default.yaml")
    with pytest.raises(PolicyError, match="is a link"):
        roll_back(other, files(1), "abc")
    with pytest.raises(PolicyError, match="cannot be changed"):
        roll_back(tmp_path / "nowhere", files(1), "abc")
    assert os.listdir(other) == ["default.yaml"]


@pytest.mark.parametrize("when", ["1e20", "1e999", "-1", "-1e999", "NaN", "1" + "0" * 400])
def test_a_time_that_is_none_costs_only_the_time(history: PolicyHistory, when: str) -> None:
    """The files are held against their hash, so the revision is still there, as the oldest one."""
    first, second = record(history, 1), record(history, 2)
    meta = history.folder / second / "meta.json"
    meta.write_text(json.dumps({"revision": second, "how": "reload", "taken_at": 0}).replace(": 0}", f": {when}}}"))
    found = [entry.revision for entry in history.entries()]
    if len(when) > 100:  # more than a number of this machine can be
        assert found == [first]
    else:
        assert found == [first, second]
        assert history.entries()[1].taken_at == 0
        assert history.files(second) == files(2)
    assert record(history, 2) == second
    assert history.entries()[0].revision == second


@pytest.mark.parametrize(
    "text",
    ['{"revision": "%s", "how": "reload", "taken_at": "soon"}', '{"revision": "%s", "how": "reload", "taken_at": []}',
     '{"revision": "%s", "how": [], "taken_at": 1}', '{"revision": "%s", "how": "reload", "taken_at": 1, "files": 1}',
     '{"revision": "%s", "how": "reload", "taken_at": 1, "files": ["../x.yaml"]}',
     '{"revision": "%s", "how": "reload", "taken_at": 1, "files": [{}]}', "[]", "1", '"%s"', "[" * 100_000, "\udcff"],
)  # fmt: skip
def test_a_damaged_note_is_an_entry_that_is_not_there(history: PolicyHistory, text: str) -> None:
    """Whatever stands in `meta.json`; recording the revision again repairs it."""
    revision = record(history, 1)
    (history.folder / revision / "meta.json").write_bytes(text.replace("%s", revision).encode("utf-8", "surrogatepass"))
    assert history.entries() == []
    assert record(history, 1) == revision
    assert history.files(revision) == files(1)


def test_what_else_lies_in_a_revision_does_no_harm(history: PolicyHistory) -> None:
    """A desktop's hidden file, an editor's copy, a folder: only missing or altered files are damage."""
    revision = record(history, 1)
    place = history.folder / revision
    (place / ".DS_Store").write_bytes(b"x")
    (place / "notes.txt").write_bytes(b"x")
    (place / "copy.yaml").write_bytes(b"x")
    (place / "folder.yaml").mkdir()
    assert history.files(revision) == files(1)
    (place / "meta.json").write_text(json.dumps({"revision": revision, "taken_at": 5.0, "how": "start"}))
    (place / "copy.yaml").unlink()
    assert history.files(revision) == files(1)  # as an older version wrote it
    (place / "lanes.yaml").write_bytes(b"lanez")
    with pytest.raises(PolicyError, match="damaged"):
        history.files(revision)
    (place / "lanes.yaml").unlink()
    with pytest.raises(PolicyError, match="damaged"):
        history.files(revision)

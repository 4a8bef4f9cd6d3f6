"""The setting `jobs`: which file it is, and what is said where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from router.errors import SettingsError
from router.settings import Settings
from router.stores import check_stores, decisions_file, open_stores

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("is_there", [True, False])
@pytest.mark.parametrize("name", ["router.db", "./sub/../router.db", "link/router.db", "other.db"])
def test_the_file_of_traces_is_refused_however_it_is_spelled(tmp_path: Path, name: str, is_there: bool):
    """By another path, through a link to its folder, or a link to itself; whether it is there already or not."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "other.db").symlink_to(tmp_path / "router.db")
    if is_there:
        (tmp_path / "router.db").touch()
    settings = Settings(traces=f"sqlite:///{tmp_path}/router.db", jobs=f"sqlite:///{tmp_path}/{name}")
    with pytest.raises(SettingsError, match="`jobs` is the file of `traces`"):
        check_stores(settings)


def test_a_hard_link_to_the_file_of_traces_is_refused_too(tmp_path: Path):
    """One file under two names; and a file of its own is none."""
    (tmp_path / "router.db").touch()
    (tmp_path / "jobs.db").hardlink_to(tmp_path / "router.db")
    traces = f"sqlite:///{tmp_path}/router.db"
    with pytest.raises(SettingsError, match="`jobs` is the file of `traces`"):
        decisions_file(Settings(traces=traces, jobs=f"sqlite:///{tmp_path}/jobs.db"))
    assert decisions_file(Settings(traces=traces, jobs=f"sqlite:///{tmp_path}/own.db")) == tmp_path / "own.db"


async def test_owners_of_batches_in_memory_are_warned_of_at_the_start(tmp_path: Path, caplog: Any):
    """Where the router holds the key, a restart would lose them; in a file, or without the key, nothing is said."""
    for settings, is_said in (
        (Settings(traces="off", upstream_api_key="k"), True),
        (Settings(traces="off"), False),
        (Settings(traces="off", upstream_api_key="k", jobs=f"sqlite:///{tmp_path}/jobs.db"), False),
    ):
        caplog.clear()
        await open_stores(settings).close()
        assert ("whose a batch is stays in memory" in caplog.text) == is_said

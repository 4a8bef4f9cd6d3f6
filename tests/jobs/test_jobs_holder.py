"""Who works for an owner: a name that no other process has, and from which others see that it is gone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from router.jobs.holder import holder_name, is_gone

pytestmark = pytest.mark.skipif(not Path("/proc/self/ns/pid").exists(), reason="this system tells nothing in /proc")


def of(pid: int, start: str | None = None, *, boot: str | None = None, namespace: str | None = None) -> str:
    """The name that a process of this number would have, here or elsewhere."""
    our_boot, our_namespace, _, our_start, token = holder_name().split(":")
    return ":".join((boot or our_boot, namespace or our_namespace, str(pid), start or our_start, token))


def ended() -> int:
    """The number of a process that there was."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_each_name_is_another_and_its_process_is_there():
    """Two stores of one process compete like two processes."""
    one, other = holder_name(), holder_name()
    assert one != other
    assert one.split(":")[2] == str(os.getpid())
    assert "-" not in [part for part in one.split(":") if len(part) < 2]
    assert not is_gone(one)


def test_a_process_that_ended_is_gone():
    """Also where another one has its number by now, which began at another time."""
    assert is_gone(of(ended(), "12345"))
    assert is_gone(of(os.getpid(), "1"))


def test_a_process_that_ended_and_was_not_yet_buried_is_gone():
    """Its parent has not asked for its end; it does nothing any more."""
    with subprocess.Popen([sys.executable, "-c", "print()"], stdout=subprocess.PIPE) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        start = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19]
        assert is_gone(of(child.pid, start))


def test_of_a_process_elsewhere_nothing_is_known():
    """On another host, before a restart of this one, or in another container: its time must pass."""
    pid = ended()
    assert not is_gone(of(pid, boot="another"))
    assert not is_gone(of(pid, namespace="4026531999"))


@pytest.mark.parametrize("name", ["", "h", "a:b:c:d:e", "-:-:1:-:x", ":::::", "a:b:1:2"])
def test_a_name_that_is_none_of_ours_is_not_gone(name: str):
    """As those of a later version."""
    assert not is_gone(name)


def test_where_the_system_tells_nothing_only_time_counts(tmp_path: Path):
    """A name is made all the same, and none is gone."""
    name = holder_name(tmp_path)
    assert name.startswith(f"-:-:{os.getpid()}:-:")
    assert not is_gone(name, tmp_path)
    assert not is_gone(of(ended(), "12345"), tmp_path)

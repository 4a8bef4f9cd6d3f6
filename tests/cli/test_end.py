"""The end of a process by force: in time, with a word, and only when it was asked for."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import logging, sys, time
from router.cli.end import LastResort, leave
logging.basicConfig(stream=sys.stderr)

def stand_still():
    time.sleep(1_000)

last_resort = LastResort()
"""


def ended(does: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM + does], capture_output=True, text=True, timeout=30, check=False
    )


def test_a_stop_that_stands_still_is_ended_and_says_where():
    """F88: a later limit counts instead of an earlier one; status 1, and the log has the place."""
    run = ended("last_resort.within(1_000); last_resort.within(0.05); stand_still()")
    assert run.returncode == 1
    assert "the stop did not end within 0.05 s" in run.stderr
    assert "in stand_still" in run.stderr


def test_a_log_that_nobody_takes_does_not_hold_the_end_up():
    """Whoever stands still may hold the lock of the log: then it ends without a word."""
    run = ended("logging.root.handlers[0].acquire(); last_resort.within(0.05); stand_still()")
    assert (run.returncode, run.stderr) == (1, "")


def test_a_stop_that_ends_by_itself_is_left_alone():
    """Its status is its own, at once, whatever the threads of the process wait for."""
    run = ended("import threading; threading.Thread(target=stand_still).start(); last_resort.within(1_000); leave(0)")
    assert (run.returncode, run.stderr) == (0, "")

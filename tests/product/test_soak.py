"""A small soak (F26, F31, F95): what 200,000 requests must not do (`python -m bench.soak`), 2,000 must not either."""

from __future__ import annotations

from pathlib import Path

import uvloop
from kit.soak_audit import audit
from kit.soak_run import Soak, soak
from kit.soak_upstream import FAULTS

COUNT = 2_000


def test_nothing_is_lost_doubled_or_crossed_and_every_cent_is_booked(tmp_path: Path) -> None:
    """Streams and plain answers, all faults, clients that leave, cache hits: client, upstream and traces agree."""
    run = uvloop.run(soak(tmp_path, COUNT))
    figures, wrong = audit(run)
    assert wrong == []
    assert figures["equal"] > COUNT * 0.8
    assert figures["left"] > COUNT * 0.01
    assert figures["outcome client_closed"] > 0
    assert figures["outcome cut"] > 0
    assert figures["hits"] > 0
    assert run.upstream.faults.keys() == set(FAULTS) - {"529 once"}

    _the_audit_sees(run)


def _the_audit_sees(run: Soak) -> None:
    """Each kind of wrong that could be in the books is found in them."""
    whole = next(row for row in run.rows if row[2] == "ok" and row[3] != "hit" and row[4])
    rows = run.rows

    def complaint(changed: list[tuple[str, int, str, str, int | None, str | None]]) -> str:
        run.rows = changed
        return " ".join(audit(run)[1])

    others = [row for row in rows if row is not whole]
    assert "no trace" in complaint(others)
    assert "2 traces" in complaint([*rows, whole])
    assert "is booked twice" in complaint([*rows, whole])
    assert "its attempts" in complaint([*others, (*whole[:4], whole[4] + 1, whole[5])])  # type: ignore[operator]
    assert "nobody asked for" in complaint([*rows, ("f" * 32, *whole[1:])])
    run.rows = rows
    run.jobs[5].is_crossed = True
    assert "another request" in " ".join(audit(run)[1])

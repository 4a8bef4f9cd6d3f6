"""The audit behind a soak: the client's log, the upstream's ledger and the rows of the trace store, joined."""

from __future__ import annotations

import json
from collections import Counter

from kit.soak_run import Soak
from kit.soak_upstream import fault_of

MOST_ATTEMPTS = 4  # two lanes, the model asked for, one retry


def audit(run: Soak) -> tuple[dict[str, int], list[str]]:
    """Hold the three logs against each other → figures, and what is wrong; nothing is wrong when the list is empty.

    Every request has exactly one trace (none when its client left before it was whole, one or none when it left at the
    same moment). Every answer carries the nonce that was sent. Every call upstream is in one attempt of one trace; the
    money of an answer that came to its end is equal on both sides, that of one that did not is less or unknown.
    """
    wrong: list[str] = []
    by_id = {job.trace_id: job for job in run.jobs}
    bills = {bill.request_id: bill for bill in run.upstream.bills}
    traces = Counter(row[0] for row in run.rows)
    seen = Counter[str]()
    attempts_of: Counter[bytes] = Counter()
    unnamed_of: Counter[bytes] = Counter()
    booked: set[str] = set()
    if len(bills) != len(run.upstream.bills):
        wrong.append("the upstream has written two bills of one name")
    for job in run.jobs:
        number = traces[job.trace_id]
        least, most = {"half sent": (0, 0), "at once": (0, 1)}.get(job.leaves, (1, 1))
        if number < least:
            seen["lost"] += 1
            wrong.append(f"{job}: no trace")
        elif number > most:
            seen["doubled"] += 1
            wrong.append(f"{job}: {number} traces, at most {most} expected")
        if job.is_crossed:
            seen["crossed"] += 1
            wrong.append(f"{job}: the answer of another request")
        if not job.is_honest:
            seen["dishonest"] += 1
            wrong.append(f"{job}: a cut answer that looks whole")
        if not job.leaves and not job.status and fault_of(job.nonce) != "cut":
            seen["unanswered"] += 1
            wrong.append(f"{job}: no answer")
        if not job.leaves and job.status != 200 and not fault_of(job.nonce):
            seen["refused"] += 1
            wrong.append(f"{job}: refused for no reason")
    for trace_id, _, outcome, cache, cost, text in run.rows:
        owner = by_id.get(trace_id)
        if owner is None:
            wrong.append(f"a trace that nobody asked for: {trace_id}")
            continue
        attempts = json.loads(text or "[]")
        seen[f"outcome {outcome}"] += 1
        seen["hits"] += cache == "hit"
        seen["shared calls"] += cache == "coalesced"
        seen["cost unknown"] += cost is None
        if len(attempts) > MOST_ATTEMPTS:
            wrong.append(f"{owner}: {len(attempts)} attempts")
        if cost is not None and cache not in ("hit", "coalesced"):
            known = sum(attempt["cost_pusd"] or 0 for attempt in attempts)
            if known != cost:
                wrong.append(f"{owner}: costs {cost}, its attempts {known}")
        attempts_of[owner.nonce] += len(attempts)
        for attempt in attempts:
            name = attempt["request_id"]
            bill = bills.get(name)
            if bill is None:
                unnamed_of[owner.nonce] += 1
                if name is not None or attempt["cost_pusd"]:
                    wrong.append(f"{owner}: an attempt that the upstream knows nothing of: {attempt}")
                continue
            if name in booked:
                wrong.append(f"{owner}: {name} is booked twice")
            if bill.nonce != owner.nonce:
                seen["crossed"] += 1
                wrong.append(f"{owner}: booked the call of {bill.nonce.decode()}")
            booked.add(name)
            paid = attempt["cost_pusd"]
            is_final = attempt["usage"] is not None and attempt["usage"]["is_final"]
            if bill.status != 200:
                if paid:
                    wrong.append(f"{owner}: {paid} for an answer of {bill.status}")
            elif bill.is_complete and is_final:
                seen["equal"] += 1
                if paid != bill.cost_pusd:
                    wrong.append(f"{owner}: {paid}, the upstream says {bill.cost_pusd}")
            else:
                seen["cut"] += 1
                if paid is not None and not 0 < paid <= bill.cost_pusd:
                    wrong.append(f"{owner}: {paid} for a cut answer of {bill.cost_pusd}")
    silent = Counter(bill.nonce for bill in run.upstream.bills if bill.status == 0)
    for nonce, calls in run.upstream.calls.items():
        missing = calls - sum(f"req_{nonce.decode()}_{number}" in booked for number in range(1, calls + 1))
        # A kept connection that ends without a byte looks stale, so the router sends the request once more on another
        # one; both are one attempt in the trace, whose cost is unknown.
        again = min(silent[nonce] // 2, attempts_of[nonce])
        seen["sent again"] += again
        if missing - again > unnamed_of[nonce] or calls - again > attempts_of[nonce]:
            wrong.append(
                f"{nonce.decode()}: {calls} calls upstream, {missing} in no trace, {attempts_of[nonce]} attempts"
            )
    if not run.is_alive_after:
        wrong.append("a healthy request is not served afterwards")
    if run.fds[1] > run.fds[0] + run.upstream_open + 2:
        wrong.append(f"{run.fds[1]} file descriptors, {run.fds[0]} before; {run.upstream_open} are kept upstream")
    figures = {name: seen[name] for name in ("lost", "doubled", "crossed", "dishonest", "unanswered", "refused")}
    figures |= {"requests": len(run.jobs), "traces": len(run.rows), "calls upstream": len(run.upstream.bills)}
    figures |= {"left": sum(job.leaves != "" for job in run.jobs), "booked": len(booked)}
    return figures | dict(sorted(seen.items())), wrong

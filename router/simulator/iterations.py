"""The sampling calls behind one answer: how the API lists them, and which of them ran by a given moment.

Most answers come of one. A compaction, an advisor and a server-side fallback add calls of their own, each with its own
prompt, perhaps its own model, and its own price. Source: iteration usage types of the official SDK 2.12.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from router.simulator.call import Call
from router.simulator.promptcache import CachePlan


@dataclass(frozen=True, slots=True)
class Iteration:
    """One sampling call. `kind` is `message`, `compaction`, `advisor_message` or `fallback_message`.

    `call` is the request as its model got it, `output` its output tokens. `is_streamed` is False where nothing of its
    output is sent piece by piece: it ran whole before whatever comes next.
    """

    kind: str
    call: Call
    plan: CachePlan
    output: int
    is_streamed: bool = True
    is_named: bool = False  # whether its entry says which model it was

    def entry(self) -> dict[str, Any]:
        """Its entry in `usage.iterations`."""
        model = {"model": self.call.model.id} if self.is_named else {}
        return {"type": self.kind, **model, **input_counts(self.plan), "output_tokens": self.output}

    def charge(self) -> dict[str, Any]:
        """Its counts and what scales their price, as a usage of its own."""
        return {
            **input_counts(self.plan),
            "output_tokens": self.output,
            "service_tier": "batch" if self.call.is_batch else "standard",
            "inference_geo": self.call.geo,
            "speed": self.call.speed,
        }


def input_counts(plan: CachePlan) -> dict[str, Any]:
    """The input side of a usage or of an entry."""
    return {
        "input_tokens": plan.input,
        "cache_creation_input_tokens": plan.write_5m + plan.write_1h,
        "cache_read_input_tokens": plan.read,
        "cache_creation": {
            "ephemeral_5m_input_tokens": plan.write_5m,
            "ephemeral_1h_input_tokens": plan.write_1h,
        },
    }


def begun(iterations: Iterable[Iteration], produced: int) -> list[Iteration]:
    """Those that ran when so many output tokens had been streamed, the last one with what it had written by then."""
    found = []
    for iteration in iterations:
        if not iteration.is_streamed:
            found.append(iteration)
            continue
        if produced <= 0:
            break
        done = min(produced, iteration.output)
        produced -= done
        found.append(replace(iteration, output=done))
        if done < iteration.output:
            break
    return found


def are_listed(iterations: tuple[Iteration, ...]) -> bool:
    """Whether the usage says more than its top-level counts do."""
    return len(iterations) > 1 or any(iteration.kind != "message" for iteration in iterations)

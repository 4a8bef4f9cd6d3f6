"""What a decision costs: `python -m bench.decide` prints microseconds per `decide()` and per `hold()`.

The best of several rounds counts: what slows a round down is the rest of the machine.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from timeit import repeat
from typing import Any

from router.affinity.binding import Binding
from router.affinity.keep import hold
from router.catalog.lookup import Catalog
from router.catalog_file import load_catalog
from router.classify.label import Label
from router.classify.model import LinearClassifier
from router.facts.inspect import Facts
from router.policy.check import compile_folder
from router.policy.compile import PolicySet
from router.policy.decide import Decision, decide
from router.policy.folder import read_folder

_POLICIES = Path(__file__).parents[1] / "policies"
_ROUNDS, _CALLS = 7, 20_000
_RULES = 50


def fifty_rules(catalog: Catalog) -> PolicySet:
    """A policy of 50 rules that read no label; rule N takes the tenant `team-N` when its prompt is not long."""
    rules = "".join(
        f"  - {{name: rule-{n}, when: {{tenant: team-{n}, input_tokens: {{lt: 90000}}}}, route: [haiku, sonnet]}}\n"
        for n in range(1, _RULES + 1)
    )
    text = f"version: 1\nrules:\n{rules}otherwise: as-asked\n"
    folder = {"lanes.yaml": (_POLICIES / "lanes.yaml").read_bytes(), "default.yaml": text.encode()}
    return compile_folder(folder, catalog=catalog, classify=None)


def best_us(call: Callable[[], Any]) -> float:
    """Microseconds of one call, in the best of the rounds."""
    call()
    return min(repeat(call, number=_CALLS, repeat=_ROUNDS)) / _CALLS * 1e6


def main() -> None:
    """Print the figures, as JSON with `--json`."""
    catalog = load_catalog()
    fifty = fifty_rules(catalog).policies["default"]
    classifier = LinearClassifier(files("router").joinpath("data/classifier.bin").read_bytes())
    shipped_set = compile_folder(read_folder(_POLICIES), catalog=catalog, classify=classifier.label)
    shipped = shipped_set.policies["default"]
    easy, hard = Label("extraction", 0.1, 0.9, 0.05), Label("coding", 0.9, 0.9, 0.95)
    figures: dict[str, float] = {}
    for name, tenant in (("1 matches", "team-1"), ("25 matches", "team-25"), ("50 matches", "team-50"), ("none", "x")):
        facts = Facts.given({"tenant": tenant})
        figures[f"50 rules, {name}"] = best_us(lambda facts=facts: decide(fifty, facts))  # type: ignore[misc]  # a default is no parameter
    short, long = Facts.given({"requested_line": "sonnet"}), Facts.given({"input_tokens": 200_000})
    figures["default policy, a long request (no label)"] = best_us(lambda: decide(shipped, long))
    figures["default policy, asks for a label"] = best_us(lambda: decide(shipped, short))
    figures["default policy, easy label"] = best_us(lambda: decide(shipped, short, easy))
    figures["default policy, hard label"] = best_us(lambda: decide(shipped, short, hard))
    decision = decide(shipped, short, easy)
    assert isinstance(decision, Decision)
    binding = Binding("sonnet", "claude-sonnet-5-5", 20_000, 19_000, 300, 400, 1000.0)

    def kept() -> object:
        return hold(
            decision, binding, wanted="claude-haiku-5-5", asked="claude-sonnet-5-5", lanes=shipped_set.lanes,
            catalog=catalog, now_s=1060.0,
        )  # fmt: skip

    figures["hold(), a switch is priced"] = best_us(kept)
    if "--json" in sys.argv[1:]:
        print(json.dumps(figures))
        return
    for name, cost_us in figures.items():
        print(f"{name:<44} {cost_us:8.2f} µs")


if __name__ == "__main__":
    main()

"""One recorded request under the policies in force: the same answer as `router policy diff`, and rule by rule."""

from __future__ import annotations

from pathlib import Path

import pytest
from kit.page import policies
from kit.recorded_traffic import make_store

from router.catalog_file import load_catalog
from router.policy.forecast import Forecast, Refusals, Side, Soundness
from router.policy.now import decided_now
from router.policy.unsure import RecordedPolicy
from router.trace.recorded import scan

REQUESTS = 3_000


@pytest.mark.parametrize("number", [0, 1])
def test_the_rules_shown_agree_with_the_decision(tmp_path: Path, number: int) -> None:
    """The rule that is marked is the one that decides; where nobody can say, what is missing is the same."""
    chosen = policies(tmp_path)[number]
    store = tmp_path / "traces.db"
    make_store(store, REQUESTS)
    asked = {name: RecordedPolicy(policy) for name, policy in chosen.policies.items()}
    outcomes = set()
    for page in scan(store):
        for seen in page:
            if seen.facts is None or seen.policy not in asked:
                continue
            policy = asked[seen.policy]
            decision = policy.decide(seen.facts, seen.model_asked, seen.conversation, seen.label, seen.lacking)
            weighed = policy.rules(seen.facts, seen.model_asked, seen.label, seen.lacking)
            (last,) = (rule for rule in weighed if rule.outcome in ("matched", "unknown"))
            if isinstance(decision, str):
                assert (last.outcome, last.says) == ("unknown", decision)
            else:
                assert (last.outcome, last.name) == ("matched", decision.rule)
            at = weighed.index(last)
            assert {rule.outcome for rule in weighed[:at]} <= {"failed"}
            assert all(rule.says for rule in weighed[:at])
            assert {rule.outcome for rule in weighed[at + 1 :]} <= {"not reached"}
            outcomes.add((last.outcome, last.name))
    assert len(outcomes) > 3


def test_new_conversations_are_forecast_as_the_diff_forecasts_them(tmp_path: Path) -> None:
    """Rule, lane, model and refusals are those of `Side.forecast`; money is known where the model stays."""
    _, chosen = policies(tmp_path)
    store = tmp_path / "traces.db"
    make_store(store, 500)
    catalog = load_catalog()
    side, sound = Side(chosen, catalog, Refusals(catalog)), Soundness()
    compared = 0
    for page in scan(store):
        for seen in page:
            if seen.facts is None or not sound.has_needed(seen.facts):
                assert decided_now(seen, None, chosen, catalog)["missing"] == "facts"
                continue
            shown = decided_now(seen, None, chosen, catalog)
            forecast = side.forecast(seen, seen.facts, None)
            if not isinstance(forecast, Forecast):
                assert shown["missing"] == forecast
                continue
            compared += 1
            assert (shown["rule"], shown["model"] or "") == (forecast.rule, forecast.model)
            assert (shown["lane"] or shown["not_sent"]) == forecast.lane
            assert [(entry["lane"], entry["reason"]) for entry in shown["refused"]] == list(forecast.refused)
            if forecast.model == seen.model_sent:
                assert not shown["is_estimate"]
    assert compared > 100

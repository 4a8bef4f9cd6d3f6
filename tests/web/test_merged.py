"""What several workers say, as one answer: series are kept apart, what people read is added up."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from router.web.merged import added, figures_text, merged_metrics, merged_status

PAGE = """# HELP router_requests_total Finished requests.
# TYPE router_requests_total counter
router_requests_total{endpoint="messages",lane="a {b} c"} %d.0
# HELP router_plain A figure without labels.
# TYPE router_plain gauge
router_plain %d.0
router_plain{} 1.0
"""


def test_metrics_keep_a_series_for_each_worker():
    """Each family once, with all its series, each with its worker; no value is touched."""
    text = merged_metrics({1: PAGE % (3, 4), 7: PAGE % (5, 6)})
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert text.count("# TYPE router_requests_total") == 1
    requests = {sample.labels["worker"]: sample for sample in families["router_requests"].samples}
    assert {worker: sample.value for worker, sample in requests.items()} == {"1": 3.0, "7": 5.0}
    assert {sample.labels["lane"] for sample in requests.values()} == {"a {b} c"}
    assert [sample.labels for sample in families["router_plain"].samples] == [{"worker": "1"}] * 2 + [
        {"worker": "7"}
    ] * 2


def test_the_supervisors_metrics_are_those_of_the_page():
    """Names and values of the table in docs/operations.md."""
    states, events = {"starting": 0, "ready": 2, "draining": 1}, {"started": 3, "crashed": 0}
    text = figures_text({"workers": states, "worker_events": events})
    assert 'router_workers{state="ready"} 2' in text
    served = set(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE))
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    for name, kind in served:
        assert f"| `{name}` | {kind} |" in page
    assert list(text_string_to_metric_families(text))


def test_counts_are_added_and_quantiles_are_the_worst():
    """Nested counts too; what only one knows is kept; a link that is down for one is down."""
    one = {"requests": 3, "ttft_p95_s": 0.5, "lanes": {"haiku": {"ok": 2}}, "kind": "memory", "is_up": 1}
    other = {"requests": 4, "ttft_p95_s": None, "lanes": {"haiku": {"ok": 1, "cut": 1}}, "kind": "memory", "is_up": 0}
    assert added([one, other]) == {
        "requests": 7, "ttft_p95_s": 0.5, "lanes": {"haiku": {"ok": 3, "cut": 1}}, "kind": "memory", "is_up": 0,
    }  # fmt: skip


def test_the_state_of_all_is_healthy_if_each_is():
    """A problem of one is said with its number, of all once; money is the store's and is not added up."""

    def document(**more):
        base = {
            "is_healthy": True, "is_serving": True, "uptime_s": 1.0, "policy": {"is_current": True},
            "money": {"day": 5},
            "recent": {"requests": 2, "cache_hits": 1, "cache_looked_up": 2}, "cache": {"hit_share": 0.5, "entries": 3},
            "redis": {}, "upstream": {"open": 1}, "traces": None, "capture": {"setting": "off"}, "problems": [],
            "warnings": [{"what": "w", "next": "n"}],
        }  # fmt: skip
        return {**base, **more}

    sick = document(is_healthy=False, problems=[{"what": "p", "next": "n"}], policy={"is_current": False}, uptime_s=9.0)
    found = merged_status({1: document(), 2: sick})
    assert (found["is_healthy"], found["is_serving"], found["uptime_s"]) == (False, True, 9.0)
    assert found["problems"] == [{"what": "worker 2: p", "next": "n"}]
    assert found["warnings"] == [{"what": "w", "next": "n"}]
    assert found["money"] == {"day": 5}
    assert found["policy"] == {"is_current": False}
    assert (found["recent"]["requests"], found["cache"]["entries"], found["cache"]["hit_share"]) == (4, 6, 0.5)
    assert found["traces"] is None

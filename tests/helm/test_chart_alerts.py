"""Alerts and dashboard ask for what the router serves, and each alert says what to do."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml
from kit.chart import CHART, ROOT, Chart
from kit.redis_server import RedisServer, becomes
from kit.stage import stage

from router.policy.push_follower import POLL_S
from router.policy.push_store import ROLL_S

Rendered = Callable[[str], Chart]

ALERTS: list[dict[str, Any]] = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text(encoding="utf-8"))
DASHBOARD = json.loads((CHART / "files" / "dashboard.json").read_text(encoding="utf-8"))
GUIDE = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")

# Series that Prometheus itself makes, and the labels that it puts on all of a pod's.
MADE_BY_PROMETHEUS = {"up"}
OF_EVERY_SERIES = {"namespace", "service", "pod", "le"}


def served() -> dict[str, tuple[str, set[str], str]]:
    """Metric → (type, labels, meaning), from the table that a test of the docs holds against the code."""
    rows = {}
    for line in OPERATIONS.splitlines():
        row = re.match(r"\| `(\w+)` \| (counter|gauge|histogram) \|([^|]*)\| (.*) \|$", line)
        if row is not None:
            rows[row[1]] = (row[2], set(re.findall(r"`(\w+)`", row[3])), row[4])
    return rows


SERVED = served()


def queries() -> Iterator[tuple[str, str]]:
    """(where, PromQL) of every alert and every panel."""
    for alert in ALERTS:
        yield alert["alert"], alert["expr"].replace("FLEET", 'namespace="n",service="s"')
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for variable in DASHBOARD["templating"]["list"]:
        if isinstance(variable["query"], dict):
            inner = re.fullmatch(r"label_values\((.*), \w+\)", variable["query"]["query"])
            assert inner is not None
            yield variable["name"], inner[1]


QUERIES = list(queries())
_SELECTOR = re.compile(r"\b([a-z_]\w*)(?:\{([^}]*)\})")


@pytest.mark.parametrize(("where", "query"), QUERIES, ids=[f"{n}-{where}" for n, (where, _) in enumerate(QUERIES)])
def test_a_query_asks_for_series_that_there_are(where: str, query: str) -> None:
    """Metric, labels and `stat` stand in the table of docs/operations.md, and brackets are closed."""
    found = _SELECTOR.findall(query) or [(query, "")]
    for name, matchers in found:
        if name in MADE_BY_PROMETHEUS:
            continue
        family = name.removesuffix("_bucket")
        kind, labels, meaning = SERVED[family]
        assert (kind == "histogram") == (name != family), name
        for label, stat in re.findall(r'(\w+)=~?"([^"]*)"', matchers):
            assert label in labels | OF_EVERY_SERIES, f"{name} has no label `{label}`"
            if label == "stat":
                assert f"`{stat}`" in meaning or f"`{stat}`" in OPERATIONS, f"{name} has no stat `{stat}`"
        if f"rate({name}" in query or f"increase({name}" in query:
            assert kind != "gauge" or "stat=" in matchers, f"{name} is a gauge"
    assert "{" not in _SELECTOR.sub("", query), f"{where}: a series without a name"
    for opening, closing in ("()", "[]", "{}"):
        assert query.count(opening) == query.count(closing)
    grouped = {label for group in re.findall(r"\bby \(([^)]*)\)", query) for label in group.split(", ")}
    known = set().union(
        *(SERVED[n.removesuffix("_bucket")][1] for n, _ in found if n not in MADE_BY_PROMETHEUS), OF_EVERY_SERIES
    )
    assert grouped <= known


def test_each_alert_has_a_section_that_says_what_to_do() -> None:
    """docs/kubernetes.md has a heading for each, in the order of the file, with text under it, and none too many."""
    sections = dict(re.findall(r"^### (Router\w+)\n(.*?)(?=^#|\Z)", GUIDE, re.MULTILINE | re.DOTALL))
    assert list(sections) == [alert["alert"] for alert in ALERTS]
    assert [name for name, said in sections.items() if len(said.split()) < 15] == []


def test_an_alert_says_how_bad_it_is_and_what_is_the_matter() -> None:
    """Severity, a summary, and a time for what may pass by itself."""
    for alert in ALERTS:
        assert alert["labels"]["severity"] in ("warning", "critical")
        assert alert["annotations"]["summary"]
        assert set(alert) <= {"alert", "expr", "for", "labels", "annotations"}
        assert "FLEET" in alert["expr"]
        assert "for" in alert or "increase(" in alert["expr"], alert["alert"]
    assert len({alert["alert"] for alert in ALERTS}) == len(ALERTS) >= 15


@pytest.mark.anyio
async def test_a_redis_that_refuses_the_fleet_is_told_apart_from_one_that_is_away(redis_server: RedisServer) -> None:
    """A user without a command: the link is up, failures grow, and only the alert that is about that asks for both."""
    said = redis_server.say("ACL", "SETUSER", "small", "on", ">p", "~router:*", "+@all", "-hset", "-getrange")
    assert said == b"+OK\r\n"
    async with stage(fleet=redis_server.url.replace("://", "://small:p@")) as s:
        await becomes(lambda: s.app.fleet.stats()["failures"] > 1)
        figures = s.app.metrics.render().decode()
        assert int(re.findall(r'^router_fleet\{stat="failures"\} (\d+)', figures, re.MULTILINE)[0]) > 1
        assert re.search(r'^router_redis_fleet\{stat="is_up"\} 1(\.0)?$', figures, re.MULTILINE)
    exprs = {alert["alert"]: alert["expr"] for alert in ALERTS}
    both = ('router_fleet{FLEET,stat="failures"}', 'router_redis_fleet{FLEET,stat="is_up"}')
    assert [name for name, expr in exprs.items() if all(series in expr for series in both)] == [
        "RouterFleetRedisRefuses"
    ]
    assert exprs["RouterFleetRedisRefuses"].endswith("== 1")
    assert exprs["RouterFleetRedisAway"].endswith("== 0")


def test_a_few_answers_that_come_late_are_no_refusal() -> None:
    """The limit is far above single timeouts, and far below what a refusal of the slowest asker makes in that time."""
    (expr,) = [alert["expr"] for alert in ALERTS if alert["alert"] == "RouterFleetRedisRefuses"]
    asked = re.search(r'increase\(router_fleet\{FLEET,stat="failures"\}\[(\d+)m\]\)\) > (\d+)\s', expr)
    assert asked is not None
    seconds, limit = int(asked[1]) * 60, int(asked[2])
    refused = seconds / max(ROLL_S, POLL_S)  # by a Redis that takes only the words of a process, or only what it asks
    assert 30 <= limit <= refused / 3


@pytest.mark.parametrize("stat", ["refused", "failures", "other_revision"])
def test_what_keeps_pushed_policies_from_a_pod_has_an_alert(stat: str) -> None:
    """Refused by the pod, refused by Redis, or not taken for another reason."""
    assert [a["alert"] for a in ALERTS if f'router_fleet{{FLEET,stat="{stat}"}}' in a["expr"]] != []


def test_the_rule_of_a_release_is_about_its_own_pods(rendered: Rendered) -> None:
    """Two releases in one cluster do not raise each other's alerts; the runbook is a link to the alert's section."""
    rule = rendered("all-on").one("PrometheusRule")
    (group,) = rule["spec"]["groups"]
    assert [alert["alert"] for alert in group["rules"]] == [alert["alert"] for alert in ALERTS]
    for alert in group["rules"]:
        assert 'namespace="ns",service="r-gateway-admin"' in alert["expr"]
        assert "FLEET" not in alert["expr"]
        assert alert["labels"]["team"] == "platform"
        anchor = alert["alert"].lower()
        assert alert["annotations"]["runbook_url"] == f"https://docs.example.com/kubernetes.md#{anchor}"
    summaries = [alert["annotations"]["summary"] for alert in group["rules"]]
    assert summaries == [alert["annotations"]["summary"] for alert in ALERTS]  # `{{ $value }}` is Prometheus' own


def test_the_dashboard_is_one_that_grafana_takes(rendered: Rendered) -> None:
    """Valid JSON in the ConfigMap, ids given once, nothing drawn over another, the data source chosen by the reader."""
    config = rendered("all-on").one("ConfigMap", "r-gateway-dashboard")
    assert json.loads(config["data"]["model-router.json"]) == DASHBOARD
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    for panel in panels:
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "$datasource"

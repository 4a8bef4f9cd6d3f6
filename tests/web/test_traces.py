"""What the trace page asks the admin listener: one trace under today's policies, figures over time, exports."""

from __future__ import annotations

import csv
import io
import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import pytest
from kit.page import FACTS, Shown, a_request, shown

from router.errors import BadFilter
from router.trace.filters import read_query
from router.web.admin import AdminServices

COUNT = 1_250  # more than a page of an export


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    with shown(tmp_path_factory.mktemp("filled")) as filled:
        filled.write(*(a_request(number, ago_s=60.0 * number) for number in reversed(range(COUNT))))
        yield filled


def ask(where: Shown, path: str) -> tuple[int, Any, bytes]:
    try:
        with urllib.request.urlopen(where.url + path, timeout=30) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def asked(where: Shown, path: str) -> Any:
    status, _, body = ask(where, path)
    assert status == 200, body
    return json.loads(body)


def test_a_trace_is_decided_again_under_the_policies_in_force(filled: Shown) -> None:
    """From its recorded facts: rules in order, the failing clause of each, the line, and where it would go."""
    now = asked(filled, "/traces/req_000003/now")
    assert (now["revision"], now["is_same_revision"], now["missing"]) == (filled.new.revision, False, None)
    assert (now["rule"], now["lane"], now["model"], now["is_moved"]) == ("cheap", "haiku", "claude-haiku-5-5", False)
    assert [(rule["name"], rule["outcome"]) for rule in now["rules"]] == [
        ("banned", "failed"), ("team", "failed"), ("german", "failed"), ("canary", "failed"), ("cheap", "matched"),
        ("tools", "not reached"), ("otherwise", "not reached"),
    ]  # fmt: skip
    assert now["rules"][1]["says"] == "`header.x-team` is not blue"
    assert now["rules"][4]["line"] == 7
    assert {lane["lane"]: lane["is_estimate"] for lane in now["lanes"]} == {
        "haiku": False,
        "sonnet": True,
        "small": False,
    }


def test_what_the_record_does_not_tell_is_named(filled: Shown) -> None:
    """Nothing is guessed: a fact that was not recorded, no facts at all, and a policy that is gone."""
    facts = {name: value for name, value in FACTS.items() if name != "header.x-team"}
    filled.write(
        a_request(9_001, ago_s=9e5, facts=facts), a_request(9_002, ago_s=9e5, facts=None),
        a_request(9_003, ago_s=9e5, policy="gone"), a_request(9_004, ago_s=9e5, policy=""),
    )  # fmt: skip
    lacking = asked(filled, "/traces/req_009001/now")
    assert lacking["missing"] == "header.x-team"
    assert [rule["outcome"] for rule in lacking["rules"]][:3] == ["failed", "unknown", "not reached"]
    assert asked(filled, "/traces/req_009002/now")["missing"] == "facts"
    gone = asked(filled, "/traces/req_009003/now")
    assert (gone["has_policy"], gone["not_sent"], gone["rules"]) == (False, "unknown target", [])
    assert asked(filled, "/traces/req_009004/now")["missing"] == "a policy"
    assert ask(filled, "/traces/req_none/now")[0] == 404


def test_the_revision_that_served_it_answers_as_recorded(filled: Shown) -> None:
    """Nothing has changed since, so nothing is forecast."""
    filled.write(a_request(9_005, ago_s=9e5, revision=filled.new.revision, rule="tools", lane="sonnet"))
    now = asked(filled, "/traces/req_009005/now")
    assert (now["is_same_revision"], now["rule"], now["lane"], now["is_estimate"]) == (True, "tools", "sonnet", False)


def test_a_request_that_would_move_is_priced_as_an_estimate(filled: Shown) -> None:
    """The same usage at the prices of the other model; saved is against the same baseline."""
    facts = {**FACTS, "tool_names": ["look_up"], "client": "claude-code", "tools": 1}
    labels = {"task": "coding", "difficulty": 0.9, "confidence": 0.9, "p_hard": 0.9}
    filled.write(a_request(9_006, ago_s=9e5, facts=facts, labels=labels))
    now = asked(filled, "/traces/req_009006/now")
    assert (now["rule"], now["model"], now["is_moved"], now["is_estimate"]) == (
        "tools", "claude-sonnet-5-5", True, True,
    )  # fmt: skip
    assert now["saved_usd"] == pytest.approx(now["baseline_usd"] - now["cost_usd"])


def test_a_bound_conversation_is_decided_with_its_binding(filled: Shown) -> None:
    """`stick: economic` needs the arithmetic of that turn, which is not all in the trace: that is said."""
    facts = {**FACTS, "conversation": "warm", "turns": 3}
    affinity = {"lane": "sonnet", "model": "claude-sonnet-5-5", "prefix_tokens": 900, "kept": True, "switch": None}
    filled.write(a_request(9_007, ago_s=9e5, facts=facts, affinity=affinity))
    assert asked(filled, "/traces/req_009007/now")["missing"] == "an earlier turn"
    labels = {"task": "chat", "difficulty": 0.1, "confidence": 0.9, "p_hard": 0.1}
    filled.write(a_request(9_008, ago_s=9e5, facts=facts, affinity=affinity, labels=labels))
    assert asked(filled, "/traces/req_009008/now")["lane"] == "sonnet"


def test_figures_come_over_time_and_say_which_filters_they_ignore(filled: Shown) -> None:
    """By group, filtered, with the time of all requests where none is named."""
    found = asked(filled, "/figures?by=rule&rule=hard&cache=hit&since=24h")
    assert (found["ignored"], found["filters"]) == (["cache"], {"rule": "hard"})
    assert [series["name"] for series in found["series"]] == ["hard"]
    assert len(found["series"][0]["points"]["cost_usd"]) == len(found["times"])
    everything = asked(filled, "/figures")
    assert everything["totals"]["requests"] >= COUNT
    assert time.time() - everything["times"][0] < 20 * 86_400
    for path in ("/figures?by=colour", "/figures?step=x", "/figures?since=soon", "/figures?colour=red"):
        assert ask(filled, path)[0] == 400, path


def test_an_export_holds_all_that_match(filled: Shown) -> None:
    """Both kinds, across pages, newest first, as a download."""
    status, headers, body = ask(filled, "/export?since=24h&format=csv")
    rows = list(csv.DictReader(io.StringIO(body.decode())))
    assert status == 200
    assert headers["content-disposition"] == 'attachment; filename="traces.csv"'
    assert [row["request_id"] for row in rows] == [f"req_{number:06d}" for number in range(COUNT)]
    _, headers, body = ask(filled, "/export?rule=hard&since=24h")
    assert headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in body.decode().splitlines()]
    assert {line["rule"] for line in lines} == {"hard"}
    assert len(lines) == sum(number % 3 == 2 for number in range(COUNT))
    for path in ("/export?format=xlsx", "/export?colour=red"):
        assert ask(filled, path)[0] == 400


def test_a_formula_in_an_export_is_disarmed(filled: Shown) -> None:
    """A name that a spreadsheet would run gets an apostrophe (S18)."""
    filled.write(a_request(9_009, ago_s=9e5, rule="=1+1", key="@SUM(A1)"))
    _, _, body = ask(filled, f"/export?format=csv&rule={urllib.parse.quote('=1+1')}")
    (row,) = csv.DictReader(io.StringIO(body.decode()))
    assert (row["rule"], row["key"]) == ("'=1+1", "'@SUM(A1)")


def test_the_page_knows_every_filter(filled: Shown) -> None:
    """A filter that the listener takes can be typed, clicked and kept in the address; none that it refuses."""
    text = files("router.web").joinpath("static", "address.js").read_text()
    listed = re.search(r"FILTERS = \[(.*?)\]", text, re.DOTALL)
    assert listed is not None
    names = set(re.findall(r'"(\w+)"', listed[1]))
    with pytest.raises(BadFilter) as refused:
        read_query({"no such filter": "x"}, 0)
    known = set(re.findall(r"`(\w+)`", refused.value.message))
    assert known - names == {"since", "before", "limit"}
    assert names <= known


def test_without_policies_there_is_no_today() -> None:
    """A listener made of fewer parts says so; it does not fall over."""
    assert AdminServices(lambda: (True, {}), lambda: b"", dict).decide_now is None

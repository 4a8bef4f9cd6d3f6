"""`router trace`: the filters are those of the page, and `show` keeps nothing of a record to itself."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from router.cli.trace import trace
from router.errors import BadFilter
from router.trace.filters import read_query
from router.trace.record import Attempt, Trace
from router.trace.sqlite import SqliteTraceSink
from router.usage import Iteration, Tokens, Usage

START_NS = 1_790_000_000_000_000_000
OWN_OPTIONS = {"before", "limit"}  # pages are the command's own affair


def a_trace(number: int, **fields: Any) -> Trace:
    """A finished request."""
    made = {"trace_id": f"{number:032x}", "started_at_ns": START_NS + number, "request_id": f"req_{number}",
            "endpoint": "messages", "status": 200, **fields}  # fmt: skip
    return Trace(**made)


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A store with one request of each kind."""
    sink = SqliteTraceSink(tmp_path / "t.db")
    sink.write(a_trace(1, cache="bypass", cache_reason="no-store", conversation="c1", session="s1"))
    sink.write(a_trace(2, cache="miss", cache_reason="failed", conversation="c2", session="s1"))
    lines = {"succeeded": 1_200, "errored": 0}
    sink.write(a_trace(3, cache="miss", is_stored=True, conversation="c2", batch="msgbatch_1", batch_lines=lines))
    tokens = Tokens(10, cache_read=5, output=7)
    sink.write(
        a_trace(4, tags=("trial", "x"), model_sent="a", model_answered="b", stop_reason="end_turn", is_streaming=True,
                attempts=[Attempt("haiku", "a", 0.0, "rate_limited", 429, retry_after_s=2.0, is_resent=True)],
                usage=Usage(tokens, 3, 1, (Iteration("message", "a", tokens),), "batch", "eu", "fast", False),
                prompt_read_saved_pusd=4 * 10**9, prompt_write_extra_pusd=10**9)
    )  # fmt: skip
    assert sink.flush()
    sink.close()
    return f"sqlite:///{tmp_path}/t.db"


def run(url: str, *arguments: str) -> Result:
    """`router trace ARGUMENTS` on that store."""
    return CliRunner().invoke(trace, [arguments[0], "--traces", url, *arguments[1:]])


@pytest.mark.parametrize("command", ["ls", "tail", "export"])
def test_each_filter_of_the_page_is_an_option(command: str):
    """One list of filters, two ways to type them."""
    with pytest.raises(BadFilter) as caught:
        read_query({"none of them": "x"}, START_NS)
    names = set(re.findall(r"`(\w+)`", caught.value.message.partition("expected one of")[2]))
    parameters = trace.commands[command].params
    options = {option.removeprefix("--").replace("-", "_") for each in parameters for option in each.opts}
    assert {"cache_reason", "session", "rule"} <= names
    assert names - options <= OWN_OPTIONS


@pytest.mark.parametrize(
    ("option", "value", "found"),
    [
        ("--cache-reason", "no-store", [1]), ("--cache-reason", "failed", [2]), ("--session", "s1", [2, 1]),
        ("--conversation", "c2", [3, 2]), ("--trace-id", f"{3:032x}", [3]), ("--request-id", "req_4", [4]),
        ("--batch", "msgbatch_1", [3]),
    ],
)  # fmt: skip
def test_filters_find_what_they_name(url: str, option: str, value: str, found: list[int]):
    """In lists and in exports, newest first."""
    listed = json.loads(run(url, "ls", option, value, "--json").stdout)
    exported = [json.loads(line) for line in run(url, "export", option, value, "--json").stdout.splitlines()]
    assert [int(row["trace_id"], 16) for row in listed] == found
    assert listed == exported


def test_a_reason_that_does_not_exist_is_refused(url: str):
    """With the near one."""
    result = run(url, "ls", "--cache-reason", "nostore")
    assert (result.exit_code, "did you mean `no-store`?" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (1, "bypass, not looked up: no-store"), (2, "miss, the answer was not kept: failed"),
        (3, "batch msgbatch_1"), (3, "results 1,200 succeeded, 0 errored"),
        (3, "miss, the answer was stored"), (1, "conversation c1  session s1"),
        (4, "tags trial, x"), (4, "-> a, answered as b"), (4, "endpoint messages, streamed"),
        (4, "retry after 2 s"), (4, "sent twice"), (4, "iteration message a: input_tokens 10"),
        (4, "service_tier batch  geo eu  speed fast"),
        (4, "cut before its end"), (4, "stopped: end_turn"),
        (4, "prompt cache reads saved 0.004000, its writes cost 0.001000 more"),
    ],
)  # fmt: skip
def test_show_says_all_that_is_known(url: str, number: int, said: str):
    """Why the cache was not asked, what a caller is called, what was tried, what was counted."""
    result = run(url, "show", f"req_{number}")
    assert result.exit_code == 0, result.output
    assert said in result.stdout


def test_the_record_has_the_new_fields(url: str):
    """By their names in JSON."""
    found = json.loads(run(url, "show", "req_2", "--json").stdout)
    assert (found["cache_reason"], found["session"]) == ("failed", "s1")


def test_a_csv_of_several_pages_has_one_head(url: str, monkeypatch: pytest.MonkeyPatch):
    """The names of the columns come once."""
    monkeypatch.setattr("router.cli.trace.MAX_LIMIT", 2)
    lines = run(url, "export", "--format", "csv").stdout.splitlines()
    assert [line.startswith("trace_id,") for line in lines] == [True, False, False, False, False]

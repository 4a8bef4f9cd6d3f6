"""`router trace` and `router report` over a real store."""

from __future__ import annotations

import csv
import io
import json
import os
import select
import signal
import subprocess
import sys
import time
from decimal import Decimal
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from router.cli.report import report
from router.cli.trace import trace
from router.trace.export import FIELDS
from router.trace.record import Attempt, Trace
from router.trace.sqlite import SqliteTraceSink
from router.usage import Tokens, Usage

NOW_NS = time.time_ns()


def a_trace(number: int, **fields: object) -> Trace:
    return Trace(
        **{
            "trace_id": f"{number + 1:08x}" + "0" * 24, "started_at_ns": NOW_NS - number * 3600 * 10**9,
            "method": "POST", "endpoint": "messages", "path": "/v1/messages",
            "request_id": f"req_{number}", "rule": "structured-work",
            "why": ("rule `a`: no", "rule `structured-work`: matched"), "labels": {"task": "extraction"},
            "model_asked": "claude-sonnet-5-5", "model_sent": "claude-haiku-4-5", "lane": "haiku", "cache": "miss",
            "usage": Usage(Tokens(1_000, output=50)), "cost_pusd": 1_250_000_001, "baseline_pusd": 3_750_000_000,
            "saved_pusd": 2_499_999_999, "ttft_s": 0.3, "duration_s": 0.5, "status": 200, "price_version": "2026-11",
            "attempts": [Attempt("haiku", "claude-haiku-4-5", 0.001, "ok", 200, 0.2, 0.5, cost_pusd=1_250_000_001)],
            "spans": [("parsed", 0.0, 0.001)], "facts": {"input_tokens": 1_000}, **fields,
        }
    )  # fmt: skip


@pytest.fixture
def url(tmp_path: Path) -> str:
    sink = SqliteTraceSink(tmp_path / "router.db")
    sink.write(a_trace(0))
    sink.write(a_trace(1, rule="hard-work", lane="sonnet", model_asked="=1+1", cost_pusd=None, saved_pusd=None))
    sink.write(a_trace(2, rule="\x1b[2Jevil\r\n", outcome="upstream_error", status=529, cache="bypass"))
    sink.close()
    assert sink.stats()["stored"] == 3
    return f"sqlite:///{tmp_path}/router.db"


def run(command: object, *args: str, **env: str) -> Result:
    return CliRunner().invoke(command, args, env=env)


def test_ls_prints_a_row_for_each_request(url: str) -> None:
    """Newest first, one line each, whatever the names hold (S18)."""
    result = run(trace, "ls", "--traces", url)
    lines = result.stdout.splitlines()
    assert result.exit_code == 0
    assert [line.split()[1] for line in lines[1:]] == ["000000010000", "000000020000", "000000030000"]
    assert "\x1b" not in result.stdout
    assert "upstream_error 529" in lines[3]
    assert " ? " in lines[2]


def test_ls_json_is_an_array_with_the_names_of_the_contract(url: str) -> None:
    """Money as decimals, exactly."""
    rows = json.loads(run(trace, "ls", "--traces", url, "--json").stdout)
    assert [tuple(row) for row in rows] == [FIELDS] * 3
    assert rows[0]["cost_usd"] == 0.001250000001
    assert rows[1]["cost_usd"] is None
    assert '"saved_usd":0.002499999999' in run(trace, "ls", "--traces", url, "--json").stdout


def test_ls_of_nothing_is_an_empty_array(url: str) -> None:
    """A script reads it like any other answer."""
    result = run(trace, "ls", "--traces", url, "--rule", "none", "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (0, [])


@pytest.mark.parametrize(
    ("args", "found"),
    [
        (["--rule", "hard-work"], ["req_1"]),
        (["--lane", "haiku"], ["req_0", "req_2"]),
        (["--task", "extraction", "--limit", "1"], ["req_0"]),
        (["--model", "claude-haiku-4-5", "--outcome", "upstream_error"], ["req_2"]),
        (["--cache", "bypass"], ["req_2"]),
        (["--since", "90m"], ["req_0", "req_1"]),
        (["--request-id", "req_1"], ["req_1"]),
        (["--min-cost-usd", "0.001"], ["req_0", "req_2"]),
        (["--status", "5xx"], ["req_2"]),
        (["--status", "200", "--min-duration", "500ms"], ["req_0", "req_1"]),
        (["--min-duration", "501ms"], []),
    ],
    ids=str,
)
def test_filters_are_those_of_the_store(url: str, args: list[str], found: list[str]) -> None:
    """The same filters as on the page."""
    rows = json.loads(run(trace, "ls", "--traces", url, "--json", *args).stdout)
    assert [row["request_id"] for row in rows] == found


def test_the_store_comes_from_the_environment(url: str) -> None:
    """`ROUTER_TRACES`, as for `router serve`."""
    assert len(json.loads(run(trace, "ls", "--json", ROUTER_TRACES=url).stdout)) == 3


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["ls", "--outcome", "fine"], 2, "`outcome` is `fine`"),
        (["ls", "--since", "soon"], 2, "`since` is `soon`"),
        (["ls", "--traces", "postgres:///x"], 2, "sqlite:///"),
        (["ls", "--traces", "sqlite:////no/such/router.db"], 1, "no trace store"),
        (["ls", "--traces", "off"], 1, "traces are off"),
        (["show", "nothing"], 1, "router trace ls"),
        (["ls", "--nope"], 2, "--nope"),
    ],
    ids=str,
)
def test_errors_go_to_stderr_with_the_next_step(url: str, args: list[str], code: int, said: str) -> None:
    """1 for problems, 2 for wrong usage; stdout stays clean."""
    result = run(trace, *args, ROUTER_TRACES=url)
    assert result.exit_code == code
    assert said in result.stderr
    assert result.stdout == ""


def test_show_tells_route_why_money_and_time(url: str) -> None:
    """One page of text; the beginning of an id is enough."""
    text = run(trace, "show", "--traces", url, "00000001").stdout
    parts = (
        "claude-sonnet-5-5 -> claude-haiku-4-5",
        "rule `structured-work`: matched",
        "0.001250",
        "input_tokens 1,000",
        "input_tokens = 1000",
        "attempt haiku",
        "first token 300 ms",
    )
    for part in parts:
        assert part in text
    assert json.loads(run(trace, "show", "--traces", url, "req_0", "--json").stdout)["request_id"] == "req_0"
    hostile = run(trace, "show", "--traces", url, "req_2").stdout
    assert "\x1b" not in hostile
    assert "\r" not in hostile


def test_export_writes_json_lines_and_csv(url: str, tmp_path: Path) -> None:
    """All pages; formulas are disarmed in CSV."""
    lines = run(trace, "export", "--traces", url).stdout.splitlines()
    assert [json.loads(line)["request_id"] for line in lines] == ["req_0", "req_1", "req_2"]
    target = tmp_path / "out.csv"
    assert run(trace, "export", "--traces", url, "--format", "csv", "--output", str(target)).exit_code == 0
    rows = list(csv.DictReader(io.StringIO(target.read_bytes().decode(), newline="")))
    assert [row["model_asked"] for row in rows] == ["claude-sonnet-5-5", "'=1+1", "claude-sonnet-5-5"]
    assert (rows[0]["cost_usd"], rows[1]["cost_usd"], rows[0]["output_tokens"]) == ("0.001250000001", "", "50")


def test_tail_follows_until_interrupted(url: str, tmp_path: Path) -> None:
    """New requests appear as they finish; Ctrl-C ends it without a traceback."""
    code = "from router.cli.trace import trace; trace()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "tail", "--json", "--traces", url],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    sink = SqliteTraceSink(tmp_path / "router.db", flush_interval_s=0.01)
    try:
        # the tail shows what comes after it began, so requests go on coming until it has shown one
        for number in range(100, 400):
            sink.write(a_trace(number))
            sink.flush()
            if select.select([process.stdout], [], [], 0.05)[0]:
                line = process.stdout.readline()
                break
        assert json.loads(line)["request_id"].startswith("req_1")
    finally:
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=10)[1]
        sink.close()
    assert "Traceback" not in errors


def test_the_report_adds_up(url: str) -> None:
    """Unknown prices are in no sum; the last line is everything."""
    result = json.loads(run(report, "--traces", url, "--by", "lane", "--json").stdout)
    assert {row["lane"]: row["requests"] for row in result["rows"]} == {"haiku": 2, "sonnet": 1}
    assert result["totals"]["cost_usd"] == 0.002500000002
    assert result["totals"]["unknown_cost"] == 1
    text = run(report, "--traces", url, "--since", "4h").stdout
    assert text.splitlines()[0].startswith("RULE")
    assert any(line.split()[:2] == ["all", "3"] for line in text.splitlines())
    assert "\x1b" not in text
    assert run(report, "--traces", url, "--by", "moon").exit_code == 2
    assert run(report, "--traces", url, "--json", "--csv").exit_code == 2
    rows = list(csv.DictReader(io.StringIO(run(report, "--traces", url, "--by", "conversation", "--csv").stdout)))
    assert sum(int(row["requests"]) for row in rows) == result["totals"]["requests"]
    assert sum(Decimal(row["cost_usd"]) for row in rows) == Decimal(str(result["totals"]["cost_usd"]))


def test_cost_without_a_baseline_has_a_line_of_its_own(url: str, tmp_path: Path) -> None:
    """It is in no column, and it is not hidden; without any there is no line."""
    assert "of UNKNOWN" not in run(report, "--traces", url).stdout
    sink = SqliteTraceSink(tmp_path / "router.db")
    sink.write(a_trace(3, cost_pusd=3_300_000_000, baseline_pusd=None, saved_pusd=None))
    sink.close()
    totals = json.loads(run(report, "--traces", url, "--json").stdout)["totals"]
    assert totals["cost_usd"] == pytest.approx(totals["baseline_usd"] - totals["saved_usd"], abs=1e-15)
    assert (totals["unknown_cost"], totals["cost_without_baseline_usd"]) == (2, 0.0033)
    assert "\nof UNKNOWN: 0.003300 $" in run(report, "--traces", url).stdout

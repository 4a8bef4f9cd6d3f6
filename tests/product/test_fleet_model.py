"""The fleet's calculation: what follows from what, at the edges too, and that docs/sizing.md says what it says."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest

from bench import sizing
from bench.fleet_model import DAY_S, Measured, Plan, Room, Workload, plan, sent

ONE = Measured(
    plain_cpu_us=1_000, stream_cpu_us=11_600, hit_cpu_us=500, deferred_cpu_us=2_000, redis_plain_cpu_us=200,
    redis_hit_cpu_us=100, start_mb=100, stream_kb=50, plain_entry_bytes=1_000, stream_entry_bytes=2_000,
    conversation_bytes=250, fleet_trace_bytes=2_500, waiting_job_bytes=4_000, ended_job_bytes=3_000,
    trace_bytes=4_000,
)  # fmt: skip
# Nothing but plain answers: each of the others is added by the test that is about it.
PLAIN = Workload(
    requests_per_day=DAY_S * 100, peak_factor=2, streamed=0, cacheable=0, hits=0, deferred=0, moved=0, raised=0,
    asked={"claude-opus-5-5": 1.0},
)  # fmt: skip
USD = {"claude-haiku-5-5": 0.001, "claude-sonnet-5-5": 0.01, "claude-opus-5-5": 0.02}


def price(model: str, is_batch: bool) -> int:
    return round(USD[model] * 1e12 * (0.5 if is_batch else 1))


def planned(load: Workload, room: Room | None = None, one: Measured = ONE) -> Plan:
    return plan(load, one, price, room)


def test_pods_follow_from_the_busiest_minute_and_how_busy_a_core_may_be() -> None:
    """100 a second, twice that at the peak, a millisecond each: 0.2 cores, a third of one that may be 60 % busy."""
    found = planned(PLAIN)
    assert (found.mean_rate, found.peak_rate) == (100, 200)
    assert found.peak_cores == pytest.approx(0.2)
    assert (found.pods_for_cpu, found.pods_for_streams, found.pods) == (1, 0, 2)
    assert planned(replace(PLAIN, requests_per_day=DAY_S * 1_000)).pods == math.ceil(2 / 0.6) + 1
    assert planned(PLAIN, Room(spare=3)).pods == 4


def test_a_stream_costs_by_its_events() -> None:
    """A tenth of a millisecond an event, on top of what a plain answer costs."""
    found = planned(replace(PLAIN, streamed=1, events=300))
    assert found.stream_cpu_us == pytest.approx(1_000 + 300 * 100)
    assert planned(replace(PLAIN, streamed=1, events=0)).request_cpu_us == pytest.approx(ONE.plain_cpu_us)


def test_memory_decides_where_streams_stay_open_for_long() -> None:
    """Streams that say little for an hour cost no CPU, and a place each."""
    found = planned(replace(PLAIN, streamed=1, events=1, stream_s=3_600))
    left_mb = 1_536 * 0.7 - 100 - 64
    assert found.streams_per_pod == int(left_mb * 1024 / 50)
    assert found.open_streams == 200 * 3_600
    assert found.pods == math.ceil(720_000 / found.streams_per_pod) + 1 > found.pods_for_cpu + 1


def test_a_hit_costs_what_a_hit_costs_and_saves_the_price_of_the_small_model() -> None:
    """Half are hits: half of the CPU is theirs, and the money of the small model stays."""
    found = planned(replace(PLAIN, cacheable=0.5, hits=0.5))
    assert found.request_cpu_us == pytest.approx(750)
    assert found.redis_cores == pytest.approx(200 * (0.5 * 200 + 0.5 * 100) / 1e6)
    assert found.entries == 0
    assert found.routed_usd - found.cached_usd == pytest.approx(PLAIN.requests_per_day * 0.5 * USD["claude-haiku-5-5"])


def test_the_cache_holds_what_is_stored_in_one_time_to_live() -> None:
    """Misses of rules that cache, at the busiest, with their text as it is compressed."""
    found = planned(replace(PLAIN, cacheable=0.4, hits=0.1, answer_tokens=100, bytes_per_token=4, compressed=0.5))
    assert found.entries == pytest.approx(200 * 0.3 * 3_600)
    assert found.entries_bytes == pytest.approx(found.entries * (1_000 + 200))


def test_redis_holds_conversations_of_a_day_and_ten_thousand_traces_with_a_reserve() -> None:
    """Traces do not grow with the traffic; the sum is taken times the reserve."""
    small, large = planned(PLAIN), planned(replace(PLAIN, requests_per_day=PLAIN.requests_per_day * 10))
    assert small.fleet_traces_bytes == large.fleet_traces_bytes == 10_000 * 2_500
    assert large.conversations == 10 * small.conversations == pytest.approx(10 * PLAIN.requests_per_day / 5)
    assert small.redis_bytes == pytest.approx((small.conversations_bytes + small.fleet_traces_bytes) * 1.5)


def test_deferred_requests_wait_in_redis_and_their_answers_stay_for_a_week() -> None:
    """Longer prompts than the one measured take their length more; a deferred request leaves three traces."""
    load = replace(PLAIN, deferred=0.1, batch_s=600, prompt_tokens=1_024, bytes_per_token=4)
    found = planned(load)
    assert found.waiting_jobs == pytest.approx(200 * 0.1 * 600)
    assert found.ended_jobs == pytest.approx(load.requests_per_day * 0.7)
    assert found.jobs_bytes == pytest.approx((found.waiting_jobs * (4_000 + 2_048) + found.ended_jobs * 3_000) * 1.5)
    assert found.trace_rows == pytest.approx(load.requests_per_day * 1.2)
    assert found.cached_usd - found.paid_usd == pytest.approx(load.requests_per_day * 0.1 * USD["claude-opus-5-5"] / 2)


def test_routing_moves_shares_between_models_and_loses_none() -> None:
    """What goes down, what is raised, and what stays come to one."""
    load = replace(PLAIN, asked={"claude-opus-5-5": 0.5, "claude-haiku-5-5": 0.5}, moved=0.4, raised=0.1)
    shares = sent(load)
    assert shares == pytest.approx({"claude-opus-5-5": 0.3, "claude-haiku-5-5": 0.65, "claude-sonnet-5-5": 0.05})
    found = planned(load)
    count = load.requests_per_day
    assert found.as_asked_usd == pytest.approx(count * (0.5 * 0.02 + 0.5 * 0.001))
    assert found.routed_usd == pytest.approx(count * (0.3 * 0.02 + 0.65 * 0.001 + 0.05 * 0.01))


def test_without_routing_cache_and_batches_nothing_is_saved() -> None:
    """All four sums are one."""
    found = planned(PLAIN)
    assert found.as_asked_usd == found.routed_usd == found.cached_usd == found.paid_usd


def test_ten_times_the_requests_take_ten_times_the_machines_but_for_what_is_spare() -> None:
    """Everything that follows the traffic follows it in proportion."""
    few, many = planned(Workload(10e6)), planned(Workload(100e6))
    for name in ("peak_cores", "open_streams", "entries_bytes", "conversations_bytes", "jobs_bytes", "paid_usd"):
        assert getattr(many, name) == pytest.approx(10 * getattr(few, name)), name
    assert 9 * few.pods_for_cpu <= many.pods_for_cpu <= 10 * few.pods_for_cpu


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"hits": 0.5, "cacheable": 0.3}, "`hits`"),
        ({"streamed": 1.1}, "`streamed`"),
        ({"deferred": -0.1}, "`deferred`"),
        ({"asked": {"claude-opus-5-5": 0.9}}, "`asked`"),
        ({"requests_per_day": 0}, "some requests"),
        ({"stream_s": -1}, "`stream_s`"),
        ({"peak_factor": 0.5}, "`peak_factor`"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_by_name(given: dict[str, object], said: str) -> None:
    """Before anything is calculated."""
    with pytest.raises(ValueError, match=said):
        Workload(**{"requests_per_day": 1e6, **given})  # type: ignore[arg-type]


def test_a_pod_without_memory_for_a_stream_is_refused() -> None:
    """Rather than a fleet without end."""
    with pytest.raises(ValueError, match="memory_mb"):
        planned(PLAIN, Room(memory_mb=200))


def test_the_command_calculates_with_the_inputs_that_it_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    """As options, from the record of this checkout; JSON has inputs and results."""
    asked = ["--requests-per-day", "3e6", "--hits", "0.2", "--prompt-tokens", "500", "--spare", "2", "--json"]
    assert sizing.main(asked) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["workload"]["hits"] == 0.2
    assert told["room"]["spare"] == 2
    load = Workload(3e6, hits=0.2, prompt_tokens=500)
    one = sizing.measured(sizing.read(sizing.RECORD)["figures"])
    assert told["plan"] == asdict(plan(load, one, sizing.price_of(load), Room(spare=2)))


def test_the_command_says_which_input_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2, no table."""
    assert sizing.main(["--requests-per-day", "1e6", "--hits", "0.9"]) == 2
    out, err = capsys.readouterr()
    assert (out, "`hits`" in err) == ("", True)


def test_a_file_that_is_no_record_is_refused_with_its_name(tmp_path: Path) -> None:
    """And not with a traceback."""
    (tmp_path / "mine.json").write_text('{"figures": {"plain_cpu_us": {"value": 1}}}')
    with pytest.raises(SystemExit, match=r"mine\.json"):
        sizing.main(["--requests-per-day", "1e6", "--figures", str(tmp_path / "mine.json")])


def test_the_record_has_every_figure_with_how_it_was_taken() -> None:
    """Value, spread and load of each; positive, of this machine's day."""
    record = sizing.read(sizing.RECORD)
    assert {each.name for each in fields(Measured)} <= set(record["figures"])
    for name, figure in record["figures"].items():
        assert set(figure) == {"value", "spread", "load"}, name
        assert figure["value"] > 0, name
    assert {"day", "cores", "python", "rounds", "took_s"} == set(record["machine"])


def test_the_page_has_the_tables_that_the_calculation_makes() -> None:
    """After another measurement or default: `python -m bench.sizing --write`."""
    page = sizing.PAGE.read_text(encoding="utf-8")
    assert sizing.written(page, sizing.page_tables(sizing.read(sizing.RECORD))) == page


def test_a_page_without_a_place_for_a_table_is_refused() -> None:
    """A marker that was deleted by mistake is seen."""
    with pytest.raises(ValueError, match="worked"):
        sizing.written("# Sizing\n", {"worked": "| a |\n"})

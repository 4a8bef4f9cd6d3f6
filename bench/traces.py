"""What tracing costs a request, and how fast a store of a million rows answers.

    python -m bench.traces [--rows 1000000] [--store FILE]

Four figures. The request path: one append. The writer: CPU per trace, encoding, insert and roll-ups together. The
readers: what the page asks, over all rows, and the same of a running router, as a browser asks it; each must stay under
a second. `--store` keeps the file for another look.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from statistics import median
from urllib.parse import quote

from bench.processes import router
from router.trace.reader import SqliteTraceReader
from router.trace.record import Attempt, Trace, TraceQuery
from router.trace.sqlite import SqliteTraceSink
from router.usage import Tokens, Usage

SPAN_S = 30 * 86_400
START_NS = (int(time.time()) - SPAN_S) * 10**9
LIMIT_MS = 1_000
DAY_NS = 86_400 * 10**9
MODELS = ("claude-haiku-5-5", "claude-sonnet-5-5", "claude-opus-5-5", "claude-haiku-4-5")
# What the page asks for: its list, a page in the middle, filters that are rare, and the overview.
PAGE = (
    "/traces?limit=50",
    f"/traces?limit=50&until={quote(time.strftime('%Y-%m-%dT%H:%M', time.gmtime(START_NS // 10**9 + SPAN_S // 2)))}",
    "/traces?limit=50&key=bot-3&outcome=upstream_error",
    "/traces?limit=50&rule=no+such+rule",
    "/figures?by=rule",
    "/figures?by=model&since=24h",
    "/figures?by=key&rule=code",
    "/report",
    "/status",
)


def traces(count: int) -> list[Trace]:
    """A month of requests, as a router with a handful of rules and keys records them."""
    dice = random.Random(5)
    found = []
    for number in range(count):
        model, asked = dice.choice(MODELS), dice.choice(MODELS)
        usage = Usage(Tokens(dice.randrange(4_000), dice.randrange(9_000), dice.randrange(900), 0, dice.randrange(900)))
        cost, baseline = dice.randrange(10**10), dice.randrange(2 * 10**10)
        took_s = dice.lognormvariate(0.5, 0.8)
        found.append(
            Trace(
                trace_id=f"{dice.getrandbits(128):032x}", started_at_ns=START_NS + number * (SPAN_S * 10**9 // count),
                endpoint="messages", method="POST", path="/v1/messages", request_id=f"req_{number:024d}",
                tenant=f"team-{number % 5}", key=f"bot-{number % 5}", client="python-sdk",
                conversation=f"{number // 7:032x}", is_streaming=True, policy="default", revision="0123456789ab",
                rule=("short", "code", "structured-work", "rest")[number % 4],
                why=("rule `short`: input_tokens is 8211, expected at most 2000", "rule `code`: task is `code`"),
                facts={"input_tokens": 8_211, "turns": 3, "tool_names": ["look_up", "search"], "language": "en"},
                labels={"task": ("code", "chat", "extraction")[number % 3], "difficulty": 0.4, "confidence": 0.9},
                model_asked=asked, model_sent=model, model_answered=model, lane=model[7:],
                attempts=[Attempt(model[7:], model, 0.001, "ok", 200, 0.4, took_s, usage=usage, cost_pusd=cost)],
                cache=("miss", "hit", "bypass")[number % 3], usage=usage, price_version="2026-11-22+bench",
                cost_pusd=cost, baseline_pusd=baseline, saved_pusd=baseline - cost, ttft_s=took_s / 4,
                duration_s=took_s, overhead_s=0.0004,
                spans=[("parsed", 0.0, 0.00005), ("decided", 0.0001, 0.00015), ("sent", 0.0002, 0.00025)],
                status=200, stop_reason="end_turn",
                outcome="ok" if number % 50 else "upstream_error", prompt_read_saved_pusd=cost // 9,
            )
        )  # fmt: skip
    return found


def cost(folder: Path, count: int = 50_000) -> None:
    """CPU of one trace under load: times a few milliseconds apart, as a busy router has them."""
    made = traces(count)
    for number, trace in enumerate(made):
        trace.started_at_ns = START_NS + number * 3_000_000
    sink = SqliteTraceSink(folder / "cost.db", queue_max=10**9, flush_interval_s=0.05)
    assert sink.flush()
    cpu_s, started_s = time.process_time(), time.perf_counter()
    for trace in made:
        sink.write(trace)
    handed_s = time.perf_counter() - started_s
    assert sink.flush(600)
    took_s = time.perf_counter() - started_s
    reader = SqliteTraceReader(folder / "cost.db")
    while reader.overview(START_NS, START_NS + DAY_NS)["totals"]["requests"] < count:
        assert sink.flush()  # each rolls up a slice, as a quiet second does
    cpu_s = time.process_time() - cpu_s
    sink.close()
    print(f"request path   {handed_s / count * 1e6:8.2f} us/trace (one append, with the writer running)")
    print(f"writer         {cpu_s / count * 1e6:8.2f} us CPU/trace, {count / took_s:,.0f} traces/s")


def fill(path: Path, rows: int) -> None:
    """Write `rows` traces of a month."""
    made = traces(min(rows, 50_000))
    # `queue_max` so large that nothing is thinned: the rows are whole, as those of a healthy store.
    sink = SqliteTraceSink(path, queue_max=10**9, flush_interval_s=0.05)
    for part in range(0, rows, len(made)):
        for number, trace in enumerate(made[: rows - part]):
            trace.started_at_ns = START_NS + (part + number) * (SPAN_S * 10**9 // rows)
            trace.trace_id = f"{part + number:08x}{trace.trace_id[8:]}"
            sink.write(trace)
        assert sink.flush(600)
    assert sink.stats()["stored"] == rows, sink.stats()
    began_s, reader = time.perf_counter(), SqliteTraceReader(path, time_limit_s=60)
    end_ns = START_NS + SPAN_S * 10**9
    while not reader.overview(START_NS, end_ns, step_s=86_400)["is_complete"]:
        assert sink.flush(60)  # a store that nobody has written for a while has rolled up everything
    print(f"roll-ups       {time.perf_counter() - began_s:8.1f} s until they had caught up")
    sink.close()
    print(f"store          {path.stat().st_size / rows:8.0f} bytes/trace, {path.stat().st_size / 1e6:,.0f} MB")


def ask(path: Path, rows: int) -> bool:
    """Every question of the page over the whole store: median of five; True when all are fast."""
    reader = SqliteTraceReader(path, time_limit_s=60)
    end_ns = START_NS + SPAN_S * 10**9
    middle = reader.list(TraceQuery(until_ns=START_NS + SPAN_S * 10**9 // 2, limit=1))[0]
    some = reader.page(TraceQuery(until_ns=START_NS + SPAN_S * 10**9 // 2, limit=50))[1]
    questions: dict[str, Callable[[], object]] = {
        "list, newest 50": lambda: reader.page(TraceQuery()),
        "list, a page in the middle": lambda: reader.page(TraceQuery(before=some)),
        "list, one model": lambda: reader.page(TraceQuery(model=MODELS[0])),
        "list, errors of one key": lambda: reader.page(TraceQuery(key="bot-3", outcome="upstream_error")),
        "list, dear ones": lambda: reader.page(TraceQuery(min_cost_pusd=9_999_000_000)),
        "list, nothing matches": lambda: reader.page(TraceQuery(rule="no such rule")),
        "one trace by id": lambda: reader.get(middle["trace_id"]),
        "one trace by request id": lambda: reader.get(middle["request_id"]),
        "one conversation": lambda: reader.page(TraceQuery(conversation=middle["conversation"])),
        "tail": lambda: reader.tail(rows - 10, TraceQuery()),
        "overview, a day": lambda: reader.overview(end_ns - 86_400 * 10**9, end_ns, by="model"),
        "overview, a month by model": lambda: reader.overview(START_NS, end_ns, by="model"),
        "overview, a month by key": lambda: reader.overview(START_NS, end_ns, by="key", filters={"rule": "code"}),
        "overview, two hours by minute": lambda: reader.overview(end_ns - 7_200 * 10**9, end_ns, step_s=60),
        "report, everything by rule": lambda: reader.summary("rule", None),
        "report, an hour by rule": lambda: reader.summary("rule", end_ns - 3_600 * 10**9),
    }
    is_fast = True
    for name, question in questions.items():
        found = []
        for _ in range(5):
            started_s = time.perf_counter()
            question()
            found.append((time.perf_counter() - started_s) * 1e3)
        took_ms = sorted(found)[2]
        is_fast = is_fast and took_ms < LIMIT_MS
        print(f"{name:30} {took_ms:9.1f} ms{'' if took_ms < LIMIT_MS else '  over the limit'}")
    started_s = time.perf_counter()
    reader.summary("conversation", None)  # the one question that reads every row; the command line asks it
    print(f"{'report, by conversation':30} {(time.perf_counter() - started_s) * 1e3:9.1f} ms  (once, no limit)")
    return is_fast


def page(path: Path) -> bool:
    """The same of a router with nothing else to do; True when all are fast. The first answer starts a process."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    settings = {"traces": f"sqlite:///{path.resolve()}", "traces_keep": "off", "traces_max_mb": 1_000_000}
    is_fast = True
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        router("http://127.0.0.1:9", Path(folder), **settings) as server,
    ):

        def asked(question: str) -> float:
            time.sleep(0.3)  # a person: who asks without a pause waits for the writer, four times a second
            started_s = time.perf_counter()
            with opener.open(server.admin + question, timeout=60) as answer:
                answer.read()
            return (time.perf_counter() - started_s) * 1e3

        print(f"{'page, the first answer':46} {asked('/traces?limit=1'):9.1f} ms")
        for question in PAGE:
            took_ms = median(asked(question) for _ in range(5))
            is_fast = is_fast and took_ms < LIMIT_MS
            print(f"{question:46} {took_ms:9.1f} ms{'' if took_ms < LIMIT_MS else '  over the limit'}")
    return is_fast


def main() -> int:
    """Run it; 1 when a question takes a second."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--store", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = given.store or Path(folder) / "traces.db"
        cost(Path(folder))
        if not path.exists():
            fill(path, given.rows)
        is_fast = ask(path, given.rows)
        return 0 if page(path) and is_fast else 1


if __name__ == "__main__":
    sys.exit(main())

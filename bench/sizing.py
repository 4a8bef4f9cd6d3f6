"""How many pods, how much Redis, which cost: measured on the machine at hand, then worked out for so many requests.

    python -m bench.sizing [--rounds 3] [--seconds 3] [--json] [--record FILE]   # measure: about two minutes
    python -m bench.sizing --requests-per-day 10e6 [--peak-factor 3] [--hits 0.1] …  # calculate, from bench/sizing.json
    python -m bench.sizing --write                      # bring the tables of docs/sizing.md up to date with that file

To calculate with figures of your own machines: `--record FILE`, then `--figures FILE`. Every input of the table in
docs/sizing.md is an option. Exit status 1 when an answer was wrong while it measured, 2 for inputs that do not fit.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

from bench import sizing_tables
from bench.fleet_model import Measured, Plan, Price, Room, Workload, plan
from router.catalog_file import load_catalog
from router.usage import Tokens, Usage

RECORD = Path(__file__).with_name("sizing.json")
PAGE = Path(__file__).resolve().parent.parent / "docs" / "sizing.md"
DAYS = (1e6, 10e6, 100e6)
WORKED = 10e6


def read(path: Path) -> dict[str, Any]:
    """A record: `machine`, and `figures` by name, each with `value`, `spread` and `load`. Raises SystemExit."""
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        measured(record["figures"])
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise SystemExit(f"bench: {path} is no record of `python -m bench.sizing --record FILE` ({exc!r})") from None
    return record


def measured(figures: Mapping[str, Mapping[str, float]]) -> Measured:
    """The figures that the model needs."""
    return Measured(**{each.name: figures[each.name]["value"] for each in fields(Measured)})


def price_of(load: Workload) -> Price:
    """What a request of the workload costs, from the packaged catalogue."""
    catalog = load_catalog()
    usage = Usage(Tokens(load.prompt_tokens, 0, 0, 0, load.answer_tokens))

    def price(model: str, is_batch: bool) -> int:
        found = catalog.cost(usage, model, is_batch=is_batch)
        if found is None:
            raise ValueError(f"the catalogue has no price of `{model}`")
        return found

    return price


def page_tables(record: Mapping[str, Any]) -> dict[str, str]:
    """The tables of docs/sizing.md by name."""
    one, room = measured(record["figures"]), Room()
    loads = {count: Workload(count) for count in DAYS}
    plans = {count: plan(load, one, price_of(load), room) for count, load in loads.items()}
    worked = loads[WORKED]
    small_usd = price_of(worked)(worked.small, False) / 1e12
    return {
        "measured": sizing_tables.measured_table(record["figures"]),
        "derived": sizing_tables.derived_table(one),
        "inputs": sizing_tables.inputs_table(worked, room),
        "fleets": sizing_tables.fleets_table(plans),
        "worked": sizing_tables.worked_table(worked, one, room, plans[WORKED], small_usd),
    }


def written(page: str, tables: Mapping[str, str]) -> str:
    """The page with its tables, each between `<!-- NAME -->` and `<!-- end -->`. Raises ValueError without a place."""
    for name, text in tables.items():
        mark = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if len(mark.findall(page)) != 1:
            raise ValueError(f"the page has no place for the table `{name}`")
        page = mark.sub(partial(_between, text), page)
    return page


def _between(text: str, match: re.Match[str]) -> str:
    return f"{match[1]}{text}{match[2]}"


def _measure(options: argparse.Namespace) -> int:
    from bench.sizing_runs import measure  # a calculation needs neither Redis nor uvloop

    with tempfile.TemporaryDirectory(prefix="sizing-") as folder:
        began_s = time.monotonic()
        figures, errors = measure(Path(folder), options.rounds, options.seconds)
    record = {
        "machine": {
            "day": time.strftime("%Y-%m-%d", time.gmtime()),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "rounds": options.rounds,
            "took_s": round(time.monotonic() - began_s),
        },
        "figures": figures,
    }
    if options.record:
        options.record.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    if options.json:
        print(json.dumps(record, indent=2))
    else:
        print(record["machine"], "* = something else ran on this machine")
        print(sizing_tables.measured_table(figures))
        print(sizing_tables.derived_table(measured(figures)))
    if errors:
        print(f"{errors} answers were wrong", file=sys.stderr)
    return 1 if errors else 0


def _calculate(options: argparse.Namespace) -> int:
    given = {name: value for name, value in vars(options).items() if value is not None}
    try:
        load = Workload(**{each.name: given[each.name] for each in fields(Workload) if each.name in given})
        room = Room(**{each.name: given[each.name] for each in fields(Room) if each.name in given})
        one = measured(read(options.figures)["figures"])
        price = price_of(load)
        found: Plan = plan(load, one, price, room)
    except ValueError as exc:
        print(f"bench: {exc}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps({"workload": asdict(load), "room": asdict(room), "plan": asdict(found)}, indent=2))
    else:
        print(sizing_tables.worked_table(load, one, room, found, price(load.small, False) / 1e12))
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Measure, calculate, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--record", type=Path, metavar="FILE", help="keep what was measured")
    parser.add_argument("--figures", type=Path, metavar="FILE", default=RECORD, help="calculate with these")
    parser.add_argument("--write", action="store_true", help="write the tables of docs/sizing.md")
    parser.add_argument("--requests-per-day", type=float, metavar="N")
    for name, (what, _) in sizing_tables.INPUTS.items():
        of = Room if name in sizing_tables.INPUTS_OF_ROOM else Workload
        kind = int if isinstance(of.__dataclass_fields__[name].default, int) else float
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=what.replace("%", "%%"))
    options = parser.parse_args(arguments)
    if options.write:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), page_tables(read(options.figures))), encoding="utf-8")
        return 0
    return _calculate(options) if options.requests_per_day is not None else _measure(options)


if __name__ == "__main__":
    sys.exit(main())

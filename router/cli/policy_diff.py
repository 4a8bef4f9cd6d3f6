"""`router policy diff`: what an edit of the policies would have changed on recorded requests."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import click

from router.catalog.lookup import Catalog
from router.catalog_file import load_catalog
from router.classify.model import LinearClassifier
from router.cli.trace import dollars, plain, print_table, saying_errors, store_option
from router.errors import PolicyError, TraceStoreError
from router.policy.check import check_folder
from router.policy.compile import PolicySet
from router.policy.diff import Comparison
from router.policy.source import render
from router.policy.store import read_folder
from router.trace.export import encode_json
from router.trace.filters import read_since
from router.trace.recorded import scan
from router.trace.sqlite import path_of

_MOST_LINES = 40  # of one table; --json has all


@click.command()
@click.argument("old", metavar="OLD")
@click.argument("new", metavar="NEW")
@store_option
@click.option("--since", metavar="TEXT", help="An age (`1h`, `7d`) or a time (`2026-11-22`). Default: everything.")
@click.option("--policy", "name", metavar="NAME", help="Only the requests that came under this policy.")
@click.option(
    "--history",
    metavar="DIR",
    default="router-history",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Where the server keeps past revisions.",
)
@click.option(
    "--policies",
    metavar="DIR",
    default="policies",
    show_default=True,
    type=click.Path(path_type=Path),
    help="The folder whose history that is.",
)
@click.option(
    "--catalog",
    "catalog_file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Models in place of the shipped ones.",
)
@click.option("--json", "is_json", is_flag=True, help="An object; money as exact decimals.")
def diff(
    old: str,
    new: str,
    url: str,
    since: str | None,
    name: str | None,
    history: Path,
    policies: Path,
    catalog_file: Path | None,
    is_json: bool,
) -> None:
    """Say what changes on recorded requests when policies OLD are replaced by NEW.

    Each is a folder, or a revision of the history (or the beginning of one). No prompt text is needed: the facts of
    each request are in its trace. A rule that asks for something that was not recorded cannot be decided; such requests
    are counted apart. Costs on a model that did not serve the request are estimates.
    """
    with saying_errors():
        catalog = load_catalog(catalog_file)
        classifier = LinearClassifier(files("router").joinpath("data/classifier.bin").read_bytes())
        sides = [_compiled(side, history, policies, catalog, classifier) for side in (old, new)]
        path = path_of(url)
        if path is None:
            raise TraceStoreError("traces are off", hint="name a store with `--traces sqlite:///FILE`")
        since_ns = read_since(since, time.time_ns()) if since is not None else 0
        comparison = Comparison(sides[0], sides[1], catalog)
        with _without_garbage_collection():
            _run(comparison, path, since_ns, name)
    found = {"since": since, "policy": name, **comparison.result()}
    if is_json:
        click.echo(encode_json(found))
    else:
        _tell(found, old, new)


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Nothing here makes cycles, and looking for them among all the conversations remembered takes a while."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _compiled(side: str, history: Path, policies: Path, catalog: Catalog, classifier: LinearClassifier) -> PolicySet:
    """The policy set of a folder or revision; its problems are printed as `router policy check` prints them."""
    if Path(side).is_dir():
        found: Mapping[str, bytes] = read_folder(Path(side))
    else:
        # here, because only this branch needs what watches and writes files
        from router.policy.history import PolicyHistory

        try:
            found = PolicyHistory(history, policies, now=time.time).files(side)
        except PolicyError as error:
            raise PolicyError(f"`{plain(side)}` is no folder: {error.message}", hint=error.hint) from error
    checked = check_folder(found, catalog=catalog, classify=classifier.label, folder=side)
    if checked.policies is None:
        click.echo(render(checked.diagnostics), err=True)
        raise PolicyError(f"the policies of `{plain(side)}` do not compile", hint="nothing is compared before they do")
    return checked.policies


def _run(comparison: Comparison, path: Path, since_ns: int, name: str | None) -> None:
    """Feed the store to the comparison, with a progress bar where somebody watches."""
    pages = scan(path, since_ns=since_ns, policy=name)
    count, _ = next(pages)
    add = comparison.add
    if not sys.stderr.isatty():
        for _, page in pages:
            for seen in page:
                add(seen)
        return
    with click.progressbar(length=count, label="requests", file=sys.stderr) as bar:
        done = 0
        for passed, page in pages:
            for seen in page:
                add(seen)
            done += passed
            bar.update(passed)
        bar.update(max(0, count - done))  # traces of other endpoints, which are not read


def _tell(found: dict[str, Any], old: str, new: str) -> None:
    before, after = found["old"], found["new"]
    compared, moved = found["compared"], found["lane_changes"]
    click.echo(f"old  {plain(old)} (revision {before['revision']})")
    click.echo(f"new  {plain(new)} (revision {after['revision']})\n")
    click.echo(f"{found['requests']:,} recorded requests, {compared:,} compared")
    for what, count in found["undecided_for_lack_of"].items():
        click.echo(f"  {count:,} cannot be decided: `{plain(what)}` was not recorded")
    if found["not_routed"]:
        click.echo(f"  {found['not_routed']:,} never reached a policy")
    share = found["lane_change_share"]
    click.echo(
        f"{moved:,} change lane ({'-' if share is None else f'{share:.1%}'}), {found['model_changes']:,} the model"
    )
    click.echo(f"{found['warm_caches_lost']:,} lose a warm prompt cache, {found['warm_caches_won']:,} gain one")
    for said, side in (("old", before), ("new", after)):
        for what, count in side["not_sent"].items():
            click.echo(f"{said}: {count:,} not sent: {what}")
        if side["swap_refused_requests"]:
            click.echo(
                f"{said}: {side['swap_refused_requests']:,} cannot go to a lane of their rule, as far as facts tell"
            )
            for entry in side["swap_refusals"][:5]:
                click.echo(f"  {entry['requests']:,} lane `{entry['lane']}`: {plain(entry['reason'])}")
    if compared:
        click.echo("")
        _table("OLD RULE -> NEW RULE", [(_rule_name(row, found), row) for row in found["rules"]], _all(found))
    if found["lanes"]:
        click.echo("")
        _table(
            "OLD LANE -> NEW LANE", [(f"{row['old_lane']} -> {row['new_lane']}", row) for row in found["lanes"]], None
        )
    click.echo("")
    for said, side in (("old", before), ("new", after)):
        if side["estimated_requests"]:
            click.echo(
                f"{said}: {dollars(side['estimated_cost_usd'])} $ of the cost, {side['estimated_requests']:,} requests,"
                " is an estimate: another model than the one that answered, its answer taken to be as long"
            )
    if found["unknown_cost"]:
        click.echo(f"{found['unknown_cost']:,} requests of unknown cost or baseline are in none of the sums")
    if found["conversations_begun_before"]:
        click.echo(
            f"{found['conversations_begun_before']:,} requests go on with a conversation whose beginning is not among"
            " these: taken as not bound to a lane"
        )
    click.echo("swap refusals: prefill, sampling, thinking blocks and the like are not recorded, and not looked at")


def _all(found: dict[str, Any]) -> dict[str, Any]:
    return {**found, "requests": found["compared"]}


def _rule_name(row: dict[str, Any], found: dict[str, Any]) -> str:
    old, new = row["old_rule"] or "-", row["new_rule"] or "-"
    name = old if old == new else f"{old} -> {new}"
    several = len({other["policy"] for other in found["rules"]}) > 1
    return f"{row['policy']}: {name}" if several else name


def _table(title: str, named: list[tuple[str, dict[str, Any]]], total: dict[str, Any] | None) -> None:
    head = (title, "REQUESTS", "MOVED", "COST $ OLD", "NEW", "CHANGE $", "SAVED $ OLD", "NEW", "UNKNOWN")
    lines = [_line(name, row) for name, row in named[:_MOST_LINES]]
    if total is not None:
        lines.append(_line("all", total))
    print_table([head, *lines], right=range(1, len(head)))
    if len(named) > _MOST_LINES:
        click.echo(f"and {len(named) - _MOST_LINES} more, with --json")


def _line(name: str, row: dict[str, Any]) -> tuple[str, ...]:
    return (
        plain(name)[:60],
        f"{row['requests']:,}",
        f"{row['lane_changes']:,}",
        dollars(row["old"]["cost_usd"]),
        dollars(row["new"]["cost_usd"]),
        dollars(row["cost_change_usd"]),
        dollars(row["old"]["saved_usd"]),
        dollars(row["new"]["saved_usd"]),
        f"{row['unknown_cost']:,}",
    )

"""`router policy diff`: what an edit of the policies would have changed on recorded requests."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.resources import files
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import click

from router.catalog.lookup import Catalog
from router.catalog_file import load_catalog
from router.classify.model import LinearClassifier
from router.cli.policy_history import DEFAULT_HISTORY
from router.cli.trace import dollars, plain, print_table, saying_errors, store_option
from router.errors import PolicyError, RouterError, TraceStoreError
from router.policy.check import check_folder
from router.policy.compile import PolicySet
from router.policy.diff import Comparison
from router.policy.folder import read_folder
from router.policy.forecast import Recorded
from router.policy.history import PolicyHistory
from router.policy.source import render
from router.trace.export import encode_json
from router.trace.filters import read_since
from router.trace.recorded import count, scan
from router.trace.sqlite import path_of

Pages = Callable[..., Iterator[list[Recorded]]]  # called with `part=(number, of how many)`

_WORTH_SHARING = 50_000  # requests; below, another process costs more than it saves
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
    default=None,
    type=click.Path(path_type=Path),
    help=f"Where the router keeps past revisions (its setting `policy_history`; default: `{DEFAULT_HISTORY}`).",
)
@click.option(
    "--policies",
    metavar="DIR",
    envvar="ROUTER_POLICIES",
    default="policies",
    show_default=True,
    show_envvar=True,
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
@click.option(
    "--processes",
    type=click.Choice(["1", "2", "4", "8", "16"]),
    help="How many share the work. Default: by the number of requests and of cores.",
)
@click.option("--json", "is_json", is_flag=True, help="An object; money as exact decimals.")
def diff(
    old: str,
    new: str,
    url: str,
    since: str | None,
    name: str | None,
    history: Path | None,
    policies: Path,
    catalog_file: Path | None,
    processes: str | None,
    is_json: bool,
) -> None:
    """Say what changes on recorded requests when policies OLD are replaced by NEW.

    Each is a folder, or a revision of the history (or the beginning of one). No prompt text is needed: the facts of
    each request are in its trace. What one of the two revisions has served is, on that side, as recorded; the rest is
    forecast. A rule that asks for something that was not recorded cannot be decided; such requests are counted apart.
    Costs on a model that did not serve the request are estimates.
    """
    with saying_errors():
        catalog = load_catalog(catalog_file)
        classifier = LinearClassifier(files("router").joinpath("data/classifier.bin").read_bytes())
        sides = [_compiled(side, history, policies, catalog, classifier) for side in (old, new)]
        path = path_of(url)
        if path is None:
            raise TraceStoreError("traces are off", hint="name a store with `--traces sqlite:///FILE`")
        since_ns = read_since(since, time.time_ns()) if since is not None else 0
        read = partial(scan, path, since_ns=since_ns, policy=name)
        with _without_garbage_collection():
            whole = count(path, since_ns)
            parts = int(processes) if processes is not None else _worth(whole)
            comparison = compare(partial(Comparison, sides[0], sides[1], catalog), read, whole=whole, parts=parts)
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


def _compiled(
    side: str, history: Path | None, policies: Path, catalog: Catalog, classifier: LinearClassifier
) -> PolicySet:
    """The policy set of a folder or revision; its problems are printed as `router policy check` prints them."""
    if Path(side).is_dir():
        found: Mapping[str, bytes] = read_folder(Path(side))
    else:
        if history is None:
            named = os.environ.get("ROUTER_POLICY_HISTORY", DEFAULT_HISTORY)
            if named == "off":
                raise click.UsageError(
                    f"`{plain(side)}` is no folder, and the history is off (ROUTER_POLICY_HISTORY);"
                    " `--history DIR` names one"
                )
            history = Path(named)
        try:
            found = PolicyHistory(history, policies, now=time.time).files(side)
        except PolicyError as error:
            raise PolicyError(f"`{plain(side)}` is no folder: {error.message}", hint=error.hint) from error
    checked = check_folder(found, catalog=catalog, classify=classifier.label, folder=side)
    if checked.policies is None:
        click.echo(render(checked.diagnostics), err=True)
        raise PolicyError(f"the policies of `{plain(side)}` do not compile", hint="nothing is compared before they do")
    return checked.policies


def compare(begin: Callable[[], Comparison], read: Pages, *, whole: int, parts: int) -> Comparison:
    """The comparison that `begin` makes, fed with all that `read` gives, with a progress bar where somebody watches.

    The conversations are shared with other processes where there are more `parts` (a power of two): they do not touch
    each other, and what the processes count is added up. The bar shows this process's part of the `whole`, which is as
    large as the others'. Raises TraceStoreError, also when another process cannot do its part.
    """
    if "fork" not in get_all_start_methods():
        parts = 1  # what is compared holds closures, which only a fork takes along
    helpers = [_helper(begin, read, (number, parts)) for number in range(1, parts)]
    comparison = begin()
    add = comparison.add
    try:
        with click.progressbar(length=whole, label="requests", file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:
            for page in read(part=(0, parts)):
                for seen in page:
                    add(seen)
                bar.update(len(page) * parts)
            for process, told in helpers:
                try:
                    found = told.recv()
                except EOFError:
                    raise TraceStoreError("a part of the comparison ended early", hint="run it again") from None
                process.join()
                if isinstance(found, RouterError):
                    raise found
                comparison.merge(found)
            bar.update(max(0, whole - bar.pos))  # the parts are not quite equal
    finally:
        for process, _ in helpers:
            process.terminate()  # nothing to one that has ended
    return comparison


def _worth(requests: int) -> int:
    """How many processes should share a store of so many requests: a power of two, no more than there are cores."""
    if requests < _WORTH_SHARING:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 4 if cores >= 4 else 2 if cores >= 2 else 1


def _helper(begin: Callable[[], Comparison], read: Pages, part: tuple[int, int]) -> tuple[ForkProcess, Connection]:
    """A process at work on one part, and where it will tell what it counted."""
    context = get_context("fork")
    told, tell = context.Pipe(duplex=False)
    process = context.Process(target=_part, args=(tell, begin, read, part), daemon=True)
    process.start()
    tell.close()
    return process, told


def _part(tell: Connection, begin: Callable[[], Comparison], read: Pages, part: tuple[int, int]) -> None:
    """One process's share; what it counted goes through the pipe, or why it could not be read."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that began this one hears it too, and ends both
    try:
        comparison = begin()
        for page in read(part=part):
            for seen in page:
                comparison.add(seen)
        tell.send(comparison.tally())
    except RouterError as error:
        tell.send(TraceStoreError(error.message, hint=error.hint))


def _tell(found: dict[str, Any], old: str, new: str) -> None:
    before, after = found["old"], found["new"]
    compared, moved = found["compared"], found["lane_changes"]
    click.echo(f"old  {plain(old)} (revision {before['revision']})")
    click.echo(f"new  {plain(new)} (revision {after['revision']})\n")
    click.echo(f"{found['requests']:,} recorded requests, {compared:,} compared")
    for what, number in found["undecided_for_lack_of"].items():
        click.echo(f"  {number:,} cannot be decided: `{plain(what)}` was not recorded")
    if found["not_routed"]:
        click.echo(f"  {found['not_routed']:,} never reached a policy")
    share = found["lane_change_share"]
    click.echo(
        f"{moved:,} change lane ({'-' if share is None else f'{share:.1%}'}), {found['model_changes']:,} the model"
    )
    click.echo(f"{found['warm_caches_lost']:,} lose a warm prompt cache, {found['warm_caches_won']:,} gain one")
    for said, side in (("old", before), ("new", after)):
        click.echo(f"{said}: {side['as_recorded']:,} as recorded under that revision, {side['forecast']:,} forecast")
        for what, number in side["not_sent"].items():
            click.echo(f"{said}: {number:,} not sent: {what}")
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

"""`router policy push` and what belongs to it: policies put in force in every process of a fleet, through its Redis."""

from __future__ import annotations

import asyncio
import getpass
import json
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from importlib.resources import files as package_files
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from router.catalog_file import load_catalog
from router.classify.model import LinearClassifier
from router.cli.trace import plain, print_table, saying_errors
from router.errors import FleetUnavailable, PolicyError, SettingsError
from router.policy.check import Checked, check_folder
from router.policy.folder import read_whole_folder
from router.policy.pushed import Standing, Version, one_line, pack_files
from router.policy.source import render
from router.settings import Settings, resolve

if TYPE_CHECKING:
    from router.policy.push_store import Found, PushStore, Row  # the library behind it takes long to load

_SETTLE_S = 0.1  # somebody may be writing the folder
_WAIT_S = 15.0  # a policy of a thousand rules takes seconds to be checked
_Answer = TypeVar("_Answer")


def fleet_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which fleet is meant, and how it is printed."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="print JSON"),
        click.option("--config", metavar="FILE", help="settings file (default: router.yaml where there is one)"),
        click.option("--fleet", metavar="URL", help="the Redis of the fleet, in place of the setting `fleet`"),
    ):
        command = option(command)
    return command


_message = click.option("--message", metavar="TEXT", default="", help="what it is for; listed by `pushed`")


@click.command()
@click.argument("folder", metavar="[DIR]", required=False, type=click.Path(path_type=Path))
@click.option("--sticky", "is_sticky", is_flag=True, help="processes that start later take it too, before their folder")
@_message
@fleet_options
def push(
    folder: Path | None, is_sticky: bool, message: str, fleet: str | None, config: str | None, as_json: bool
) -> None:
    """Put a folder of policies in force in every process of a fleet, within a second.

    The folder is checked first, its own tests included; with anything wrong nothing is pushed. Each process checks it
    again. Ends when all have taken or refused it. Exit code 1 unless every process took it. A process that starts later
    serves its own folder, unless --sticky; so does one whose folder changes.
    """
    with saying_errors():
        settings = _settings(fleet, config)
        place = folder if folder is not None else Path(settings.policies)
        files = read_whole_folder(place, _SETTLE_S)
        checked = _checked(settings, files, place)
        if checked.policies is None:
            if as_json:
                found = [each.render() for each in checked.diagnostics]
                click.echo(json.dumps({"is_everywhere": False, "problems": found}, indent=2, ensure_ascii=False))
            else:
                click.echo(render(checked.diagnostics), err=True)
                click.echo("\nnothing was pushed", err=True)
            sys.exit(1)
        packed = pack_files(files)
        version = Version(0, 0, checked.policies.revision, "push", _who(), one_line(message), is_sticky)
        _put(settings, lambda store: store.push(version, packed), as_json=as_json)


@click.command()
@_message
@fleet_options
def unpush(message: str, fleet: str | None, config: str | None, as_json: bool) -> None:
    """Take back what was pushed: every process serves its own folder again. Exit code 1 unless all do."""
    with saying_errors():
        version = Version(0, 0, "", "unpush", _who(), one_line(message))
        _put(_settings(fleet, config), lambda store: store.push(version), as_json=as_json)


@click.command()
@fleet_options
def pushed(fleet: str | None, config: str | None, as_json: bool) -> None:
    """List the versions that were pushed, newest first, and which process serves what.

    Exit code 1 when the processes do not all serve the same revision.
    """
    with saying_errors():

        async def ask(store: PushStore) -> tuple[int, list[Found], list[Standing]]:
            return await asyncio.gather(store.number(), store.held(), _alive(store))

        number, held, processes = _asked(_settings(fleet, config), ask)
    versions = [each.version for each in held if each.version is not None and not each.problem]
    problems = [each.problem for each in held if each.problem]
    is_one = len({each.revision for each in processes}) <= 1
    if as_json:
        document = {
            "in_force": number or None,
            "versions": [version.shown() for version in reversed(versions)],
            "problems": problems,
            "processes": [each.shown() for each in processes],
            "is_one_revision": is_one,
        }
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        _print_versions(versions, number)
        rows = [
            [
                each.name,
                each.revision,
                each.source,
                _moment(each.since_ms),
                f"{each.state} #{each.looked}" * (each.looked > 0),
            ]
            for each in processes
        ]
        print_table([["PROCESS", "SERVES", "FROM", "SINCE (UTC)", "VERSION"], *map(_plain, rows)], right=[])
        for problem in problems:
            click.echo(plain(problem), err=True)
        if not processes:
            click.echo("no process was heard of: is this the Redis that your routers use?", err=True)
        if not is_one:
            click.echo("the processes do not all serve the same revision", err=True)
    if not is_one:
        sys.exit(1)


def pushed_back(number: int | None, fleet: str | None, config: str | None, *, as_json: bool) -> None:
    """The body of `router policy rollback` for a fleet: the version before, or that one, in force as a new one."""
    with saying_errors():

        async def put(store: PushStore) -> Version:
            now, versions, alive = await asyncio.gather(store.number(), store.versions(), _alive(store))
            target = _wanted(versions, now, number)
            if not now or any(each.number == now for each in versions):  # else it is one that nobody takes
                _check_changes(target, alive)
            if target is None or target.is_folder:
                back = Version(0, 0, "", "rollback", _who(), of=0 if target is None else target.number)
                return await store.push(back, in_force=now)
            back = Version(
                0,
                0,
                target.revision,
                "rollback",
                _who(),
                target.message,
                target.is_sticky,
                of=target.of or target.number,
            )
            return await store.push(back, files_of=target, in_force=now)

        _put(_settings(fleet, config), put, as_json=as_json)


def _wanted(versions: Sequence[Version], now: int, number: int | None) -> Version | None:
    """The version to go back to; None: the folder, which served before the first one. Raises PolicyError."""
    listed = "`router policy pushed` lists what is kept"
    if number is not None:
        for version in versions:
            if version.number == number:
                return version
        raise PolicyError(f"there is no version #{number}", hint=listed)
    in_force = next((version for version in versions if version.number == now), None)
    if in_force is None and now and versions:  # somebody put one in force that cannot be taken
        return versions[-1]
    if in_force is None:
        raise PolicyError("nothing is pushed, so there is nothing to go back from", hint=listed)
    if in_force.is_folder and in_force.how == "rollback":
        raise PolicyError("the folder of each process serves: there is nothing before it", hint=listed)
    before = in_force.of if in_force.how == "rollback" and in_force.of else in_force.number
    earlier = [version for version in versions if version.number < before]
    if not earlier and before > 1:
        raise PolicyError(f"the version before #{before} is not kept any more", hint=f"{listed}; `--to` names one")
    return earlier[-1] if earlier else None


async def _alive(store: PushStore) -> list[Standing]:
    from router.policy.push_store import LEASE_MS

    return [each for each in await store.processes() if each.silent_ms <= LEASE_MS]


def _check_changes(target: Version | None, alive: Sequence[Standing]) -> None:
    """Refuse to go back to what serves already: the way back is another one. Raises PolicyError."""
    revision = target.revision if target is not None else ""
    if alive and all(each.revision == (revision or each.folder) for each in alive):
        serves = ", ".join(sorted({each.revision for each in alive}))
        what = f"version #{target.number} is" if revision and target is not None else "the folder of each process holds"
        raise PolicyError(
            f"nothing would change, so nothing was done: {what} revision {serves}, which serves already",
            hint="`router policy pushed` lists what is kept: `--to` names one; or change the folder, or push another",
        )


def _put(settings: Settings, put: Callable[[PushStore], Awaitable[Version]], *, as_json: bool) -> None:
    """Put a version in force, wait for the processes, print a row for each; exit code 1 unless all took it."""

    async def run(store: PushStore) -> tuple[Version, list[Row], float]:
        from router.policy.push_store import Overtaken

        began_s = time.monotonic()
        try:
            version = await put(store)
        except Overtaken as exc:
            raise FleetUnavailable(
                f"version #{exc.number} came into force meanwhile; nothing was changed",
                hint="look at `router policy pushed`, then repeat",
            ) from exc
        rows = await store.acknowledged(version, _WAIT_S)
        return version, rows, time.monotonic() - began_s

    version, rows, took_s = _asked(settings, run)
    is_everywhere = all(row.state == "taken" for row in rows) and (bool(rows) or version.is_sticky or version.is_folder)
    if as_json:
        document = {
            **version.shown(),
            "processes": [row.shown() for row in rows],
            "took_s": round(took_s, 3),
            "is_everywhere": is_everywhere,
        }
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        what = "the folder of each process" if version.is_folder else f"revision {version.revision}"
        of = f", from #{version.of}" if version.of else ""
        click.echo(f"version #{version.number}: {what}{of}{', sticky' if version.is_sticky else ''}")
        print_table([_plain([row.state, row.standing.name, row.reason]) for row in rows], right=[])
        taken = sum(row.state == "taken" for row in rows)
        click.echo(f"in force in {taken} of {len(rows)} processes after {took_s:.2f} s")
        if not rows:
            click.echo("no process was heard of: is this the Redis that your routers use?", err=True)
        elif taken and not version.is_folder:
            click.echo("undo: router policy rollback")
    if not is_everywhere:
        sys.exit(1)


def _asked(settings: Settings, ask: Callable[[PushStore], Awaitable[_Answer]]) -> _Answer:
    """What the store of the fleet says. Raises SettingsError, PolicyError and FleetUnavailable."""
    from router.fleet import fleet_url, open_link, signing_key
    from router.policy.push_store import PushStore
    from router.redis_link import RedisUnavailable

    url = fleet_url(settings)
    if url is None:
        raise SettingsError(
            "no Redis is named for pushed policies",
            hint="`--fleet redis://…`, or the setting `fleet` of your routers",
        )

    async def run() -> _Answer:
        link = open_link(url)
        try:
            return await ask(PushStore(link, signing_key(settings)))
        finally:
            await link.close()

    try:
        return asyncio.run(run())
    except RedisUnavailable as exc:
        raise FleetUnavailable(
            f"redis: {exc.reason}",
            hint="what was asked for may be in force all the same: look at `router policy pushed` when it answers",
        ) from exc


def _settings(fleet: str | None, config: str | None) -> Settings:
    return resolve({"fleet": fleet}, os.environ, config).settings


def _checked(settings: Settings, files: dict[str, bytes], folder: Path) -> Checked:
    """The folder as a router with these settings would see it."""
    catalog = load_catalog(Path(settings.catalog) if settings.catalog else None)
    weights = package_files("router").joinpath("data/classifier.bin").read_bytes()
    try:
        correction = Path(settings.classifier_correction).read_bytes() if settings.classifier_correction else None
    except OSError as exc:
        raise SettingsError(f"`classifier_correction` cannot be read: {exc.strerror}") from exc
    classifier = LinearClassifier(weights, correction)
    return check_folder(files, catalog=catalog, classify=classifier.label, folder=str(folder))


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        user = str(os.getuid()) if hasattr(os, "getuid") else "?"
    return f"{user}@{socket.gethostname()}"


def _print_versions(versions: Sequence[Version], in_force: int) -> None:
    if not versions:
        click.echo("nothing was pushed\n")
        return
    rows = [["", "VERSION", "REVISION", "AT (UTC)", "HOW", "WHO", "MESSAGE"]]
    for version in reversed(versions):
        how = f"{version.how}{f' of #{version.of}' if version.of else ''}{', sticky' if version.is_sticky else ''}"
        rows.append(
            [
                "*" if version.number == in_force else "",
                f"#{version.number}",
                version.revision or "the folder",
                _moment(version.at_ms),
                how,
                version.who,
                version.message,
            ]
        )
    print_table([_plain(row) for row in rows], right=[])
    click.echo("")


def _plain(row: Sequence[str]) -> list[str]:
    return [plain(cell) for cell in row]


def _moment(unix_ms: int) -> str:
    try:
        return datetime.fromtimestamp(unix_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return "?"

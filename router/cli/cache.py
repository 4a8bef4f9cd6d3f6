"""`router cache`: what the cache holds and how it does, and answers that are not to be replayed any more.

A cache in Redis is asked directly, whether a router runs or not; one in memory through the admin listener of the router
that holds it. Both say the same, because both ask a `CacheDesk`.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click

from router.cache.desk import CacheDesk, WantedPurge, kind_of, read_wanted
from router.catalog_file import load_catalog
from router.cli.admin import admin_url, connection_to, reason_of
from router.cli.trace import plain, print_table, saying_errors
from router.errors import BadFilter, CacheUnavailable
from router.settings import Settings, resolve
from router.urls import without_password

_LIMIT_S = 600.0  # a purge looks through every entry before it answers
_MOST_ANSWER = 16 * 1024 * 1024  # bytes
_COLUMNS = (
    ("entries", "ENTRIES"),
    ("bytes", "BYTES"),
    ("max_bytes", "OF"),
    ("near_entries", "COPIES"),
    ("near_bytes", "BYTES"),
    ("hits", "HITS"),
    ("near_hits", "NEAR HITS"),
    ("misses", "MISSES"),
    ("waits", "WAITS"),
    ("stored", "STORED"),
    ("evicted", "EVICTED"),
    ("purged", "PURGED"),
    ("near_purged", "PURGED"),
    ("corrupt", "CORRUPT"),
    ("unanswered", "UNANSWERED"),
    ("unwritten", "UNWRITTEN"),
)
_UNHEARD = """\
Not heard of: {names}
A process that is not heard of has ended without a word, or cannot reach Redis. In the latter case it replays nothing
that is shared, and forgets its own copies within {copy_s:.0f} seconds of losing Redis. Repeat the purge to be sure."""


@click.group()
def cache() -> None:
    """Stored answers: counts, and purges that hold in every process."""


def _place(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which cache is meant."""
    for option in (
        click.option("--json", "is_json", is_flag=True, help="Print a JSON object."),
        click.option(
            "--admin",
            metavar="URL",
            help="Ask the router with this admin listener. Default, where the cache is in memory: the one of the "
            "settings `admin_host` and `admin_port`.",
        ),
        click.option("--cache", "cache_url", metavar="URL", help="The cache, in place of the setting `cache`."),
        click.option("--config", metavar="FILE", help="Settings file (default: router.yaml where there is one)."),
    ):
        command = option(command)
    return command


@cache.command()
@_place
def stats(config: str | None, cache_url: str | None, admin: str | None, is_json: bool) -> None:
    """Show counts since the start of each process, and what is held now.

    Exit code 1: the cache cannot be reached.
    """
    with saying_errors():
        settings = _settings(config, cache_url)
        found = _asked(settings, admin, "GET", "/cache", None)
    if is_json:
        click.echo(json.dumps(found, indent=2))
    elif found["cache"] == "off":
        click.echo("the cache is off")
    else:
        _print_stats(found)


@cache.command()
@_place
@click.option("--tenant", metavar="NAME", help="Answers that this tenant (its name in the traces) asked for first.")
@click.option("--rule", metavar="NAME", help="Answers of this rule.")
@click.option("--model", metavar="ID", help="Answers of this model, by its id or an alias.")
@click.option("--older-than", metavar="AGE", help="Answers asked for longer ago, such as `1h`.")
@click.option("--all", "is_all", is_flag=True, help="Every answer.")
def purge(
    config: str | None, cache_url: str | None, admin: str | None, is_json: bool, is_all: bool, **given: str | None
) -> None:
    """Forget stored answers: those that fit all the filters, or with --all every one.

    Ends when no process replays them any more. Exit code 1: it could not be seen that the purge holds in every process,
    or the cache cannot be reached.
    """
    with saying_errors():
        wish: dict[str, Any] = {name: text for name, text in given.items() if text is not None}
        if wish.get("older_than", "").isdecimal():
            wish["older_than"] = int(wish["older_than"])
        if is_all:
            wish["all"] = True
        wanted = read_wanted(wish)
        settings = _settings(config, cache_url)
        done = _asked(settings, admin, "POST", "/cache/purge", wanted, wish)
    if is_json:
        click.echo(json.dumps(done, indent=2))
    else:
        _print_purge(done)
    if not done["is_done"]:
        sys.exit(1)


def _settings(config: str | None, cache_url: str | None) -> Settings:
    return resolve({"cache": cache_url}, os.environ, config).settings


def _asked(
    settings: Settings,
    admin: str | None,
    method: str,
    path: str,
    wanted: WantedPurge | None,
    wish: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What the cache's desk says: here, where the cache is in Redis or off, else at the router that holds it."""
    kind = kind_of(settings.cache)
    if admin is None and kind != "memory":
        return asyncio.run(_ask_here(kind, settings, wanted))
    return _ask_router(admin or admin_url(settings), settings.admin_token, method, path, wish)


async def _ask_here(kind: str, settings: Settings, wanted: WantedPurge | None) -> dict[str, Any]:
    if kind == "off":
        desk = CacheDesk(kind)
        return await (desk.stats() if wanted is None else desk.purge(wanted))
    from router.stores import maintenance_cache  # the library behind it takes long to load, and few have it

    opened = partial(maintenance_cache, settings)
    if wanted is None:
        return await CacheDesk(kind, opened).stats()
    catalog = load_catalog(Path(settings.catalog) if settings.catalog else None)
    return await CacheDesk(kind, opened, catalog).purge(wanted)


def _ask_router(url: str, token: str | None, method: str, path: str, wish: Mapping[str, Any] | None) -> dict[str, Any]:
    """The answer of a router's admin listener.

    No redirect is followed, because the token would go along. Raises SettingsError, BadFilter and CacheUnavailable.
    """
    headers = {"accept": "application/json"}
    if token is not None:
        headers["authorization"] = f"Bearer {token}"
    if wish is not None:
        headers["content-type"] = "application/json"
    shown = without_password(url)
    connection, prefix = connection_to(url)
    try:
        connection.connect()
        connection.sock.settimeout(_LIMIT_S)
        connection.request(method, prefix + path, None if wish is None else json.dumps(wish), headers)
        answer = connection.getresponse()
        body = answer.read(_MOST_ANSWER)
    except (OSError, http.client.HTTPException, ValueError) as exc:
        reason = reason_of(exc)
        raise CacheUnavailable(
            f"the admin listener at `{shown}` does not answer: {reason}",
            hint="a cache in memory is asked through the router that holds it: start it, or name it with `--admin URL`",
        ) from exc
    finally:
        connection.close()
    try:
        found = json.loads(body)
        message = "" if answer.status == 200 else str(found["error"]["message"])
        is_ours = isinstance(found, dict) and (answer.status != 200 or "cache" in found)
    except (ValueError, TypeError, KeyError, RecursionError):
        is_ours = False
    if not is_ours:
        raise CacheUnavailable(
            f"`{shown}` answered {answer.status} with something that is not of an admin listener that has a cache",
            hint="`--admin` is the address of the admin listener, not that of the API",
        )
    if answer.status == 400:
        raise BadFilter(message)
    if answer.status != 200:
        hint = "set `admin_token` (ROUTER_ADMIN_TOKEN, or ROUTER_ADMIN_TOKEN_FILE)" if answer.status == 401 else ""
        raise CacheUnavailable(f"the admin listener at `{shown}` answered {answer.status}: {message}", hint=hint)
    return dict(found)


def _print_stats(found: Mapping[str, Any]) -> None:
    processes: Mapping[str, Mapping[str, int]] = found["processes"]
    if found["stored"] is not None:
        click.echo(f"{found['stored']:,} answers in Redis, used by {_processes(len(processes))}")
    if not processes:
        return
    columns = [(name, head) for name, head in _COLUMNS if any(name in counts for counts in processes.values())]
    rows = [[plain(name), *(f"{counts.get(each, 0):,}" for each, _ in columns)] for name, counts in processes.items()]
    if len(rows) > 1:
        rows.append(["all", *(f"{found['total'].get(each, 0):,}" for each, _ in columns)])
    print_table([["PROCESS", *(head for _, head in columns)], *rows], right=range(1, len(columns) + 1))


def _print_purge(done: Mapping[str, Any]) -> None:
    if done["cache"] == "off":
        click.echo("the cache is off: nothing is replayed, and there is nothing to purge")
        return
    filters = [f"{name} {done[name]}" for name in ("tenant", "rule") if done[name]]
    filters += [f"model {' or '.join(done['models'])}"] if done["models"] else []
    filters += [f"asked for over {done['older_than_s']:,.10g} s ago"] if done["older_than_s"] else []
    click.echo(f"purged: {plain(', '.join(filters)) or 'everything'}")
    click.echo(f"{done['deleted']:,} answers deleted; {_processes(done['told'])} will not replay them any more")
    if not done["told"]:
        click.echo(
            "No router that runs was told: is this the Redis, and the database, that your routers use?", err=True
        )
    if not done["deleted"] and filters:
        click.echo(
            "No stored answer was meant: each carries the tenant, rule and model that it was stored by.", err=True
        )
    if done["unheard"]:
        from router.cache.fleet import COPY_S

        click.echo(_UNHEARD.format(names=plain(", ".join(done["unheard"])), copy_s=COPY_S), err=True)
    if done["problem"]:
        click.echo(f"Ended early: {plain(done['problem'])}", err=True)
        click.echo("Repeat the purge when Redis answers: it may not hold everywhere yet.", err=True)


def _processes(count: int) -> str:
    return "1 process" if count == 1 else f"{count:,} processes"


__all__ = ["cache"]

"""`router config show`: the settings in force and where each came from."""

from __future__ import annotations

import json
import os

import click

from router.otel import check_otel
from router.settings import SECRETS, SETTINGS, Settings, resolve
from router.urls import without_password


@click.group()
def config() -> None:
    """Settings."""


@config.command()
@click.option("--config", "config_file", metavar="FILE", help="settings file (default: router.yaml where there is one)")
@click.option("--origin", is_flag=True, help="also say where each value came from")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def show(config_file: str | None, origin: bool, as_json: bool) -> None:
    """Print every setting; secrets, and passwords inside URLs, are shown as set or not set."""
    resolved = resolve({}, os.environ, config_file)
    _check_stores(resolved.settings)
    check_otel(os.environ)
    rows = []
    for name, meaning in SETTINGS.items():
        value = getattr(resolved.settings, name)
        if name in SECRETS and value is not None:
            value = "(set)"
        elif isinstance(value, str):
            value = without_password(value)
        rows.append({"name": name, "value": value, "origin": resolved.origins[name], "meaning": meaning})
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        value = "-" if row["value"] is None else row["value"]
        click.echo(f"{row['name']:17} {value!s:34} " + (row["origin"] if origin else row["meaning"]))


def _check_stores(settings: Settings) -> None:
    """Refuse what `serve` would refuse. Raises SettingsError."""
    if settings.fleet not in (None, "off"):
        from router.fleet import fleet_url  # the library behind it takes long to load, and few have it

        fleet_url(settings)
    if settings.affinity in ("off", "memory://") and settings.cache in ("off", Settings().cache):
        return
    from router.stores import check_stores  # the library behind it takes long to load, and few have it

    check_stores(settings)

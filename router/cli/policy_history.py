"""`router policy history` and `rollback`: what was in force, and how to have it back."""

from __future__ import annotations

import json
import os
import time
from datetime import UTC, datetime
from importlib.resources import files as package_files
from pathlib import Path

import click

from router.catalog_file import load_catalog
from router.classify.model import LinearClassifier
from router.cli.policy_push import fleet_options, pushed_back
from router.errors import PolicyError, RouterError
from router.policy.check import LANES_FILE, check_folder, revision_of
from router.policy.folder import read_folder
from router.policy.history import ROLLBACK_MARK, PolicyHistory, roll_back
from router.policy.source import render, visible

DEFAULT_HISTORY = "router-history"

_folder = click.argument("folder", metavar="[DIR]", default="policies", type=click.Path(path_type=Path))
_history = click.option(
    "--history",
    "history_folder",
    metavar="DIR",
    default=None,
    type=click.Path(path_type=Path),
    help=f"where the router keeps the history (its setting `policy_history`; default: `{DEFAULT_HISTORY}`)",
)


@click.command()
@_folder
@_history
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def history(folder: Path, history_folder: Path | None, as_json: bool) -> None:
    """List the revisions that were in force, newest first."""
    kept = _open(history_folder, folder)
    try:
        on_disk = revision_of(read_folder(folder, is_rollback=True))
    except PolicyError:  # no folder is no reason not to see the history
        on_disk = ""
    rows = []
    for entry in kept.entries():
        names: list[str] = []
        problem = ""
        try:
            names = sorted(
                visible(name.removesuffix(".yaml")) for name in kept.files(entry.revision) if name != LANES_FILE
            )
        except PolicyError as error:
            problem = error.message
        rows.append(
            {
                "revision": entry.revision,
                "taken_at": entry.taken_at,
                "how": entry.how,
                "policies": names,
                "is_on_disk": entry.revision == on_disk,
                "files": str(kept.folder / entry.revision),
                "problem": problem,
            }
        )
        if not as_json:
            when = datetime.fromtimestamp(entry.taken_at, UTC).strftime("%Y-%m-%d %H:%M:%S")
            mark = "*" if entry.revision == on_disk else " "
            click.echo(f"{mark} {entry.revision}  {when} UTC  {entry.how:8}  {problem or ', '.join(names)}")
    if as_json:
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    if (folder / ROLLBACK_MARK).exists():
        click.echo("a rollback is under way, or was cut short: `router policy rollback REVISION` finishes it", err=True)
    if not rows:
        click.echo(f"no revisions in {kept.folder}; a router that serves {folder} keeps them there", err=True)
    elif on_disk and not any(row["is_on_disk"] for row in rows):
        click.echo(f"what is on disk now ({on_disk}) is not among them: it was never in force")


@click.command()
@click.argument("revision", metavar="[REVISION]", required=False)
@_folder
@_history
@click.option(
    "--catalog",
    "catalog_file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="models in place of the shipped ones",
)
@click.option("--to", "number", metavar="NUMBER", type=int, help="of pushed policies: the version to have back")
@fleet_options
def rollback(
    revision: str | None,
    folder: Path,
    history_folder: Path | None,
    catalog_file: Path | None,
    number: int | None,
    fleet: str | None,
    config: str | None,
    as_json: bool,
) -> None:
    """Have earlier policies back, live within a second: of a folder (with REVISION), or of a whole fleet (without).

    With REVISION, that revision of the history is put back into the folder. Without, what was pushed before the version
    in force (or the version --to) is in force again in every process, as a new version; exit code 1 unless all took it.
    """
    if revision is None:
        pushed_back(number, fleet, config, as_json=as_json)
        return
    if number is not None or fleet is not None or config is not None or as_json:
        raise click.UsageError(
            "REVISION is of a folder; `--to`, `--fleet`, `--config` and `--json` are of pushed policies"
        )
    kept = _open(history_folder, folder)
    try:
        entry = kept.find(revision)
        files = kept.files(entry.revision)
        classifier = LinearClassifier(package_files("router").joinpath("data/classifier.bin").read_bytes())
        checked = check_folder(
            files, catalog=load_catalog(catalog_file), classify=classifier.label, folder=entry.revision
        )
        if checked.policies is None:
            click.echo(render(checked.diagnostics), err=True)
            raise PolicyError(
                f"revision {entry.revision} does not pass with this version; nothing was changed",
                hint=f"its files are in {kept.folder / entry.revision}: copy and repair them",
            )
        on_disk = read_folder(folder, is_rollback=True)
        # In the middle of a rollback that was cut short the folder holds a mix: nothing that anyone would want back.
        is_whole = not (folder / ROLLBACK_MARK).exists()
        replaced = revision_of(on_disk)
        if is_whole and replaced == entry.revision:
            click.echo(f"{folder} is at revision {entry.revision} already; nothing was changed")
            return

        def save() -> None:
            _save(kept, on_disk if is_whole else {}, entry.revision, files)

        changed = roll_back(folder, files, entry.revision, save)
    except RouterError as error:
        hint = f"\n  hint: {error.hint}" if error.hint else ""
        raise click.ClickException(f"{error.message}{hint}") from error
    click.echo(f"{folder} is back at revision {entry.revision}; changed: {visible(', '.join(changed)) or 'nothing'}")
    if is_whole and on_disk:
        where = f" --history {history_folder}" if history_folder is not None else ""
        click.echo(f"undo: router policy rollback {replaced} {folder}{where}")
    for warning in checked.warnings:
        click.echo(f"warning: {warning.render()}", err=True)


def _save(kept: PolicyHistory, on_disk: dict[str, bytes], revision: str, files: dict[str, bytes]) -> None:
    """Keep what is about to be replaced, then the revision rolled back to as the newest.

    Whatever happens next, a router that starts finds it there. Raises PolicyError when something cannot be kept.
    """
    is_saved = not on_disk or kept.record(revision_of(on_disk), on_disk, "replaced")
    if not is_saved or not kept.record(revision, files, "rollback"):
        raise PolicyError(
            f"what it would replace cannot be saved: {kept.status()['last_error']}; nothing was changed",
            hint="`--history` names another folder",
        )


def _open(history_folder: Path | None, folder: Path) -> PolicyHistory:
    if history_folder is None:
        named = os.environ.get("ROUTER_POLICY_HISTORY", DEFAULT_HISTORY)
        if named == "off":
            raise click.UsageError("the history is off (ROUTER_POLICY_HISTORY); `--history DIR` names one")
        history_folder = Path(named)
    return PolicyHistory(history_folder, folder, now=time.time)

"""`router policy fmt`: policy files in one layout, comments kept."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import click

from router.errors import PolicyError
from router.policy.format import format_policy
from router.policy.history import is_policy_file


@click.command()
@click.argument("paths", metavar="[DIR|FILES…]", nargs=-1, type=click.Path(path_type=Path))
@click.option("--check", "is_check", is_flag=True, help="change nothing; exit 1 when something would change")
@click.option("--stdout", "to_stdout", is_flag=True, help="print the result instead of writing it")
def fmt(paths: tuple[Path, ...], is_check: bool, to_stdout: bool) -> None:
    """Format policies: two spaces of indent, a blank line between rules; comments, order and quotes stay."""
    failed = changed = 0
    files = _files(paths or (Path("policies"),))
    for file in files:
        try:
            data = file.read_bytes()
            formatted = format_policy(file.name, data, str(file))
            if to_stdout:
                sys.stdout.write(formatted.decode())
            if formatted == data:
                continue
            changed += 1
            if not to_stdout:
                click.echo(f"{'would change' if is_check else 'formatted'} {file}")
            if not is_check and not to_stdout:
                _replace(file, formatted)
        except PolicyError as error:
            failed += 1
            hint = f"\n  hint: {error.hint}" if error.hint else ""
            click.echo(f"{error.message}{hint}", err=True)
        except OSError as exc:
            failed += 1
            click.echo(f"{file}: {exc.strerror or type(exc).__name__}", err=True)
    if not to_stdout:
        same = len(files) - changed - failed
        left = f", {failed} left alone" if failed else ""
        click.echo(f"{changed} {'would change' if is_check else 'formatted'}, {same} as they should be{left}")
    sys.exit(1 if failed or (is_check and changed) else 0)


def _files(paths: tuple[Path, ...]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(file for file in path.iterdir() if is_policy_file(file.name) and file.is_file())
        elif path.exists():
            found.append(path)
        else:
            raise click.ClickException(f"{path}: no such file or folder")
    return found


def _replace(file: Path, data: bytes) -> None:
    """Write beside and rename, so that a running router sees the old text or the new one; a link stays a link."""
    real = Path(os.path.realpath(file))
    beside = real.with_name(f".{real.name}.fmt-{os.getpid()}")
    try:
        beside.write_bytes(data)
        shutil.copymode(real, beside)
        os.replace(beside, real)
    finally:
        beside.unlink(missing_ok=True)

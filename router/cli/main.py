"""The command line: one group, each command in a file of its own, loaded when it is used."""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import version

import click

from router.errors import RouterError, SettingsError

# name → module:attribute; the order of the help page
_COMMANDS = {
    "serve": "router.cli.serve:serve",
    "demo": "router.cli.demo:demo",
    "policy": "router.cli.policy:policy",
    "trace": "router.cli.trace:trace",
    "report": "router.cli.report:report",
    "status": "router.cli.status:status",
    "cache": "router.cli.cache:cache",
    "models": "router.cli.models:models",
    "classify": "router.cli.classify:classify",
    "config": "router.cli.config:config",
    "simulate": "router.cli.simulate:simulate",
}


class _Lazy(click.Group):
    """A group whose commands are imported one at a time: `router trace ls` does not wait for the server's modules."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = _COMMANDS.get(cmd_name)
        if place is None:
            return None
        module, _, attribute = place.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("model-router"), prog_name="router")
def cli() -> None:
    """A proxy that speaks the Anthropic API and sends each request to the model it needs."""


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 found problems, 2 wrong usage (a wrong setting among them)."""
    try:
        cli.main(standalone_mode=True)
    except RouterError as exc:
        sys.exit(complain(exc))


def complain(exc: RouterError) -> int:
    """Say what is wrong and what to do, on standard error; returns the exit status."""
    click.echo(f"error {exc.code}: {exc.message}", err=True)
    if exc.hint:
        click.echo(f"  hint: {exc.hint}", err=True)
    return 2 if isinstance(exc, SettingsError) else 1


if __name__ == "__main__":
    main()

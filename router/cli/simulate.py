"""`router simulate`: the simulated Anthropic API alone."""

from __future__ import annotations

from pathlib import Path

import click

from router.simulator.script import Script, ScriptError
from router.simulator.server import run
from router.simulator.settings import SimulatorSettings

REAL_BATCH_ITEM_S = 0.05


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", default=8090, show_default=True, type=click.IntRange(0, 65535), help="Port; 0 takes a free one."
)
@click.option(
    "--latency",
    type=click.Choice(["real", "none"]),
    default="real",
    show_default=True,
    help="Answer as fast as real models do, or at once.",
)
@click.option(
    "--batch-item-ms",
    type=click.FloatRange(0),
    help=f"Milliseconds that an item of a batch takes; {REAL_BATCH_ITEM_S * 1_000:g} unless told, 0 with no latency.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of answers, ids and waiting times.")
@click.option(
    "--script",
    "script_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="YAML or JSON list of scripted behaviours (failures, delays, fixed texts).",
)
def simulate(
    host: str, port: int, latency: str, batch_item_ms: float | None, seed: int, script_path: Path | None
) -> None:
    """Serve a simulated Anthropic API: no key needed, nothing billed.

    It takes any API key, answers by rule, and refuses what the named model refuses. What it billed is at
    /_simulator/ledger, what it received at /_simulator/requests, the items of batches at /_simulator/batches. It
    prints its address when it listens.
    """
    try:
        script = Script.load(script_path) if script_path else Script()
    except ScriptError as exc:
        raise click.UsageError(str(exc)) from exc
    is_real = latency == "real"
    batch_item_s = REAL_BATCH_ITEM_S if is_real else 0.0
    if batch_item_ms is not None:
        batch_item_s = batch_item_ms / 1_000
    settings = SimulatorSettings(
        latency="real" if is_real else "none",
        seed=seed,
        script=script,
        batch_item_s=batch_item_s,
    )
    try:
        run(host, port, settings)
    except OSError as exc:
        raise click.ClickException(f"cannot listen on {host}:{port}: {exc.strerror}; try --port 0") from exc

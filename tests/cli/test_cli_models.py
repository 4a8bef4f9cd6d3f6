"""`router models` prints the catalogue."""

from __future__ import annotations

import json

from click.testing import CliRunner

from router.catalog_file import load_catalog
from router.cli.models import models


def test_the_table_shows_each_current_model_with_its_prices():
    """Retired models only on request."""
    result = CliRunner().invoke(models, [])
    assert result.exit_code == 0
    line = next(line for line in result.output.splitlines() if line.startswith("claude-haiku-5-5"))
    assert line.split()[1:9] == ["active", "1M", "128k", "0.10", "0.50", "0.125", "0.20", "0.01"]
    assert "0.50/2.50 over 100k prompt tokens" in line
    assert "retired" not in result.output
    assert "claude-3-haiku-20240307" in CliRunner().invoke(models, ["--all"]).output


def test_json_holds_the_same_models_with_decimal_prices():
    """One object; the price version says which prices."""
    result = CliRunner().invoke(models, ["--json", "--all"])
    document = json.loads(result.output)
    catalog = load_catalog()
    assert document["price_version"] == catalog.price_version
    assert [model["id"] for model in document["models"]] == [model.id for model in catalog.models]
    haiku = next(model for model in document["models"] if model["id"] == "claude-haiku-5-5")
    assert haiku["usd_per_mtok"]["cache_read"] == 0.01
    assert haiku["long_prompt"] == {
        "above_prompt_tokens": 100_000,
        "input": 0.5,
        "output": 2.5,
        "cache_write_5m": 0.625,
        "cache_write_1h": 1.0,
        "cache_read": 0.05,
    }


def test_a_broken_file_ends_with_a_message_and_no_traceback(tmp_path):
    """Status 1 for a file that is wrong, 2 for one that is not there."""
    path = tmp_path / "mine.yaml"
    path.write_text("models: 5")
    result = CliRunner().invoke(models, ["--file", str(path)])
    assert result.exit_code == 1
    assert "schema_version" in result.output
    assert CliRunner().invoke(models, ["--file", str(tmp_path / "none")]).exit_code == 2

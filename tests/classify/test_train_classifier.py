"""The trainer, on data small enough for a test."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SAMPLES = Path(__file__).parent / "samples.jsonl"


@pytest.fixture
def tiny(tmp_path):
    """Our samples with the fields that the trainer wants; every fifth row is `dev`."""
    path = tmp_path / "tiny.jsonl"
    rows = []
    for at, line in enumerate(SAMPLES.read_text(encoding="utf-8").splitlines()):
        row = json.loads(line)
        difficulty = 4 if row["lane"] == "sonnet" else 1
        split = "dev" if at % 5 == 0 else "train"
        rows.append({**row, "difficulty": difficulty, "template": f"t{at}", "source": "own", "split": split})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_same_seed_gives_the_same_weights(tiny, tmp_path):
    """Byte by byte, whatever the hash seed of the process and the number of processes; another seed gives others."""
    written = []
    for hash_seed, seed, workers in (("1", "3", "1"), ("2", "3", "2"), ("1", "4", "1")):
        out = tmp_path / f"{hash_seed}-{seed}.bin"
        command = [sys.executable, str(ROOT / "tools" / "train_classifier.py"), str(tiny), "--out", str(out)]
        command += ["--seed", seed, "--epochs", "2", "--own-count", "120", "--folds", "2", "--fits", "1"]
        command += ["--workers", workers]
        # Matrices as small as these are slower on two threads than on one.
        environment = {"PYTHONHASHSEED": hash_seed, "OPENBLAS_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
        subprocess.run(command, check=True, capture_output=True, env=environment)
        written.append(out.read_bytes())
    assert written[0] == written[1]
    assert written[0] != written[2]

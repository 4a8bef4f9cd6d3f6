"""What every test shares: the order of the floors, and the async backend."""

from __future__ import annotations

import functools
import gc
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

import router.catalog_file
import router.classify.model

if TYPE_CHECKING:
    from router.catalog.lookup import Catalog

# The same examples in every run, so that a red test is a change of ours and never a roll of the dice; to look for new
# ones: HYPOTHESIS_PROFILE=explore.
hypothesis.settings.register_profile("house", derandomize=True, deadline=None)
hypothesis.settings.register_profile("explore", max_examples=2000, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "house"))

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT))  # so that tests import `kit`
pytest_plugins = ("kit.redis_server",)

_MEMORY = Path("/dev/shm")
_ROOM_BYTES = 2**30  # several times of what a whole run writes


def _write_to_memory() -> None:
    """Temporary folders lie in memory where there is room: a commit of SQLite waits for no disk then.

    A `TMPDIR` that somebody has set is respected.
    """
    if "TMPDIR" in os.environ or not os.access(_MEMORY, os.W_OK | os.X_OK):
        return
    is_for_programs = not os.statvfs(_MEMORY).f_flag & getattr(os, "ST_NOEXEC", 0)
    if is_for_programs and shutil.disk_usage(_MEMORY).free > _ROOM_BYTES:
        os.environ["TMPDIR"] = str(_MEMORY)
        tempfile.tempdir = None  # forget what was looked up before


_write_to_memory()
# One core is one worker's: libraries of numbers would start a thread per core in each of them.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# The weights that the package ships are read once per worker; what was read is never changed. A program that a test
# starts reads them for itself.
router.classify.model.read_weights = functools.cache(router.classify.model.read_weights)

_read_catalog = router.catalog_file.load_catalog
_shipped_catalog = functools.cache(_read_catalog)


def _load_catalog(path: Path | None = None) -> Catalog:
    """The catalogue of the package is read once per worker too; who asks gets its own, for models may be refreshed."""
    return _read_catalog(path) if path else _shipped_catalog().with_models(_shipped_catalog().models)


router.catalog_file.load_catalog = _load_catalog  # before any test module takes it from there

# Lowest floor first, so that the first red test is usually the cause.
_FLOORS = (
    ("test_errors", "test_floors", "wire", "test_usage", "test_catalog", "test_prices"),
    ("test_facts", "test_swap", "classify"),
    ("cache", "affinity", "policy", "test_keys", "test_settings"),
    (
        "upstream",
        "test_redis_link",
        "test_redis_batches",
        "test_redis_rest",
        "test_redis_topologies",
        "trace",
        "simulator",
    ),
    ("serve", "web"),
    ("cli", "clients", "product"),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--requests", metavar="FILE", help="labelled requests (JSONL) for the fidelity test")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _floor(item.path))


@pytest.hookimpl(optionalhook=True)  # without xdist nobody asks
def pytest_xdist_auto_num_workers() -> int:
    """Workers of `-n auto`: three for two cores, because the suite waits for a third of its time.

    Servers start, elect a master, time out: meanwhile another test uses the core. With five the suite is a tenth
    quicker, and on a busy machine what is measured by the clock begins to fail.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores + (cores + 1) // 2


def pytest_collection_finish() -> None:
    """What was collected lives to the end: no full collection need look at it again, hundreds of times."""
    gc.collect()
    gc.freeze()


def _floor(path: Path) -> int:
    top = path.relative_to(ROOT).parts[0].removesuffix(".py")
    return next((number for number, names in enumerate(_FLOORS) if top in names), len(_FLOORS))


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test sees only the settings that it makes."""
    for name in list(os.environ):
        if name.startswith(("ROUTER_", "ANTHROPIC_", "CLAUDE_", "OTEL_")):
            monkeypatch.delenv(name)

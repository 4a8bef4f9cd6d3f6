"""What the policy tests share: the packaged catalogue, and the smallest folder that compiles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from router.catalog.lookup import Catalog
from router.catalog_file import load_catalog
from router.policy.check import compile_folder
from router.policy.compile import CompiledPolicy, PolicySet

LANES = (Path(__file__).parent / "cases" / "lanes.yaml").read_bytes()


@pytest.fixture(scope="session")
def catalog() -> Catalog:
    return load_catalog()


@pytest.fixture
def compiled(catalog: Catalog) -> Callable[[str], CompiledPolicy]:
    """The default policy of a folder whose `rules` and `otherwise` are given as text."""

    def compile_text(text: str) -> CompiledPolicy:
        files = {"lanes.yaml": LANES, "default.yaml": f"version: 1\n{text}".encode()}
        return compile_folder(files, catalog=catalog, classify=None).policies["default"]

    return compile_text


@pytest.fixture
def compile_files(catalog: Catalog) -> Callable[[dict[str, bytes]], PolicySet]:
    return lambda files: compile_folder(files, catalog=catalog, classify=None)

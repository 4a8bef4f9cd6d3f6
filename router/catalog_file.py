"""Where the catalogue's text comes from: the packaged `data/models.yaml`, or a file of the owner's."""

from __future__ import annotations

from collections.abc import Hashable
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from router.catalog.lookup import Catalog, read_catalog
from router.errors import CatalogError


class _StrictLoader(yaml.CSafeLoader):
    """The safe loader in C, except that a key given twice is an error: the last price would silently win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """The mapping of `node`; raises ConstructorError for a key given twice."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"`{key.value}` is given twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def load_catalog(path: Path | None = None) -> Catalog:
    """The catalogue in `path`, or the packaged one. Reads the file anew each time.

    Raises CatalogError when the file cannot be read, is not YAML, or does not describe models.
    """
    source = files("router").joinpath("data/models.yaml") if path is None else path
    name = "the packaged `models.yaml`" if path is None else f"`{path}`"
    try:
        text = source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CatalogError(f"{name} cannot be read: {error}", hint="give a readable UTF-8 file") from error
    try:
        document = yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - a subclass of the safe loader
    except yaml.YAMLError as error:
        raise CatalogError(f"{name} is not YAML: {error}") from error
    try:
        return read_catalog(document)
    except CatalogError as error:
        raise CatalogError(f"{name}: {error.message}", hint=error.hint) from error

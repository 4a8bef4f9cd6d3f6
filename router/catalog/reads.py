"""Who can read whose thinking: the entries of `reads_thinking_from`, made into names of models.

An entry is an id or an alias (with a remark in brackets at most), `same_as:ID`, `models_up_to_LINE_VERSION_...` (the
named models and all of the same line that came no later), or a remark in brackets alone, which names nobody. Whoever
is not named is not read: the API drops such blocks without a word.
Source: Anthropic fact sheet, section 4.2, and the notes in the packaged `models.yaml`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

from router.catalog.records import Model
from router.errors import CatalogError

_SAME = "same_as:"
_EARLIER = "models_up_to_"
_NAMED = re.compile(r"([a-z]+)((?:_\d+)+)")


def with_readers(models: Sequence[Model], by_name: Mapping[str, Model]) -> tuple[Model, ...]:
    """The models with `accepts.reads_thinking_from` as ids and aliases. Doing it twice changes nothing.

    `by_name` finds each of `models` by id and alias. Raises CatalogError for a `same_as:` that names no model, or one
    that itself only names another.
    """
    return tuple(
        dataclasses.replace(
            model, accepts=dataclasses.replace(model.accepts, reads_thinking_from=_names(model, models, by_name))
        )
        for model in models
    )


def _names(model: Model, models: Sequence[Model], by_name: Mapping[str, Model]) -> frozenset[str]:
    found: set[str] = set()
    for producer in _producers(model, models, by_name):
        found.update((producer.id, *producer.aliases))
    return frozenset(found)


def _producers(model: Model, models: Sequence[Model], by_name: Mapping[str, Model]) -> Iterable[Model]:
    for entry in _followed(model, by_name):
        if entry.startswith(_EARLIER):
            for line, version in _NAMED.findall(entry.removeprefix(_EARLIER)):
                last = by_name.get(f"claude-{line}{version.replace('_', '-')}")
                if last is not None and last.released is not None:  # no date, no claim
                    ends = last.released
                    yield from (one for one in models if one.line == line and (one.released or "9") <= ends)
            continue
        named = by_name.get(entry.split(" ", 1)[0])
        if named is not None:
            yield named


def _followed(model: Model, by_name: Mapping[str, Model]) -> Iterable[str]:
    """The entries of a model, with those of another in the place of `same_as:`."""
    for entry in sorted(model.accepts.reads_thinking_from):
        if not entry.startswith(_SAME):
            yield entry
            continue
        other = by_name.get(entry.removeprefix(_SAME))
        entries = frozenset() if other is None else other.accepts.reads_thinking_from
        if other is None or any(name.startswith(_SAME) for name in entries):
            raise CatalogError(
                f"`{model.id}`.reads_thinking_from is `{entry}`", hint="name a model whose own list is written out"
            )
        yield from sorted(entries)

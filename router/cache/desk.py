"""What an operator asks of a cache, read strictly, and what came of it as JSON; the admin listener and CLI share it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from router.cache.entry import MAX_TTL_S, PurgeReport
from router.catalog.lookup import Catalog
from router.errors import BadFilter
from router.policy.words import duration_s
from router.seams import CacheBackend

_TEXTS = ("tenant", "rule", "model")
_NAMES = (*_TEXTS, "older_than", "all")
_MOST_CHARS = 500

Opened = Callable[[], AbstractAsyncContextManager[CacheBackend]]


@dataclass(frozen=True, slots=True)
class WantedPurge:
    """Which answers an operator no longer wants replayed; None means any.

    `tenant` is the name in the traces, `model` an id or an alias, `older_than_s` is since the answer was asked for.
    """

    tenant: str | None = None
    rule: str | None = None
    model: str | None = None
    older_than_s: float | None = None


def read_wanted(given: Mapping[str, object]) -> WantedPurge:
    """The purge that `given` asks for: tenant, rule, model, older_than (`1h`, or seconds), all.

    A name that is there has a value. Without any filter `all` must be true, so that nobody empties a fleet by a slip.
    Raises BadFilter.
    """
    for name in given:
        if name not in _NAMES:
            near = get_close_matches(str(name)[:64], _NAMES, 1)
            raise BadFilter(
                f"unknown filter `{name!s:.64}`, expected one of {', '.join(f'`{known}`' for known in _NAMES)}",
                hint=f"did you mean `{near[0]}`?" if near else "",
            )
    texts = {name: _text(name, given[name]) for name in _TEXTS if name in given}
    age_s = _age_s(given["older_than"]) if "older_than" in given else None
    is_all = given.get("all", False)
    if not isinstance(is_all, bool):
        raise BadFilter(f"`all` is `{is_all!r:.64}`, expected true or false")
    if is_all and texts:
        raise BadFilter(f"`all` and `{next(iter(texts))}` are both given", hint="leave one of them out")
    if not is_all and not texts and age_s is None:
        raise BadFilter(
            "nothing says which answers are meant", hint="name a filter, or say `all` (`--all`) to forget every one"
        )
    return WantedPurge(**texts, older_than_s=age_s)


def kind_of(url: str) -> str:
    """What the setting `cache` names: `off`, `memory` or `redis`; whether the rest of it is right is not looked at."""
    return "off" if url == "off" else "memory" if url.partition(":")[0] == "memory" else "redis"


class CacheDesk:
    """Counts and purges of a cache for an operator; `catalog` knows the other names of a model.

    `kind` is what `kind_of` says. `opened` gives the cache for the time of one question (None: it is off): who looks
    through a whole store needs more patience, and a link of its own, than who answers requests.
    """

    def __init__(self, kind: str, opened: Opened | None = None, catalog: Catalog | None = None) -> None:
        self._kind = kind
        self._opened = opened
        self._catalog = catalog

    async def stats(self) -> dict[str, Any]:
        """`cache` (the kind), `stored` (entries of a shared store, else None), counts in `total` and by `processes`.

        Raises CacheUnavailable.
        """
        if self._opened is None:
            return {"cache": self._kind, "stored": None, "total": {}, "processes": {}}
        async with self._opened() as cache:
            stats = await cache.stats_everywhere()
        processes = {name: dict(counts) for name, counts in stats.processes.items()}
        return {"cache": self._kind, "stored": stats.stored, "total": dict(stats.total), "processes": processes}

    async def purge(self, wanted: WantedPurge) -> dict[str, Any]:
        """What was meant, entries `deleted`, processes `told` and `unheard`, a `problem` or None, and `is_done`.

        Raises CacheUnavailable when nothing could be begun.
        """
        names = self._names_of(wanted.model)
        report = PurgeReport(0, 0)
        if self._opened is not None:
            async with self._opened() as cache:
                report = await _purge(cache, wanted, names)
        return {
            "cache": self._kind,
            "tenant": wanted.tenant,
            "rule": wanted.rule,
            "models": [name for name in names if name is not None] or None,
            "older_than_s": wanted.older_than_s,
            "deleted": report.deleted,
            "told": report.told,
            "unheard": list(report.unheard),
            "problem": report.problem or None,
            "is_done": not report.unheard and not report.problem,
        }

    def _names_of(self, model: str | None) -> tuple[str | None, ...]:
        """All names of a model: an entry has the one that was sent, which may be an alias."""
        known = self._catalog.find(model) if self._catalog is not None and model is not None else None
        return (model,) if known is None else (known.id, *known.aliases)


async def _purge(cache: CacheBackend, wanted: WantedPurge, names: tuple[str | None, ...]) -> PurgeReport:
    """One purge for each name, as one report: the fewest told, everybody unheard, the first problem."""
    whole: PurgeReport | None = None
    for name in names:
        one = await cache.purge(
            tenant=wanted.tenant, rule=wanted.rule, model=name, older_than_s=wanted.older_than_s or 0.0
        )
        whole = (
            one
            if whole is None
            else replace(
                whole,
                deleted=whole.deleted + one.deleted,
                told=min(whole.told, one.told),
                unheard=tuple(sorted({*whole.unheard, *one.unheard})),
                problem=whole.problem or one.problem,
            )
        )
    assert whole is not None
    return whole


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value or len(value) > _MOST_CHARS:
        raise BadFilter(f"`{name}` is `{value!r:.64}`, expected a text of 1 to {_MOST_CHARS} characters")
    return value


def _age_s(value: object) -> float:
    seconds = duration_s(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = value
    if seconds is None or not 0 < seconds <= MAX_TTL_S:
        raise BadFilter(
            f"`older_than` is `{value!r:.64}`, expected an age such as `1h`, or seconds, of at most "
            f"{MAX_TTL_S // 86_400} days",
            hint="no answer is kept longer",
        )
    return float(seconds)


__all__ = ["CacheDesk", "Opened", "WantedPurge", "kind_of", "read_wanted"]

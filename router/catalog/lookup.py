"""The model catalogue: models by id or alias, and what usage costs on them.

`read_catalog` turns the parsed catalogue document (the format of the packaged `models.yaml`) into a `Catalog`.
Source: Anthropic pricing page and fact sheet, section 2.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from router.catalog.prices import BATCH, FAST, PUSD_PER_USD, US, compile_tables, pusd
from router.catalog.reads import with_readers
from router.catalog.records import Accepts, FastMode, Model, Thinking, read_model
from router.errors import CatalogError
from router.usage import Tokens, Usage

__all__ = ["Accepts", "Catalog", "FastMode", "Model", "Thinking", "add_up", "covers", "read_catalog"]


class Catalog:
    """All models, found by id or alias, and what usage costs on them.

    Names and prices never change once made. What the models take may: `adopt` is the only mutation, and everything
    that holds the catalogue sees it at its next `find`.
    """

    __slots__ = ("_by_name", "_scale", "_search", "_tables", "models", "price_version")

    def __init__(self, models: Sequence[Model], *, web_search_pusd: int, as_of: str) -> None:
        self.models = with_readers(models, _by_name(models))
        self._by_name = _by_name(self.models)
        by_id = {model.id: model.prices for model in self.models if model.prices is not None}
        self._scale, tables = compile_tables(by_id)
        self._search = web_search_pusd * self._scale
        self._tables = {name: tables[model.id] for name, model in self._by_name.items() if model.id in tables}
        digest = hashlib.sha256(repr((web_search_pusd, sorted(by_id.items()))).encode()).hexdigest()
        # The date says how fresh the prices are; the digest changes whenever any price does.
        self.price_version: str = f"{as_of}+{digest[:8]}"

    def with_models(self, models: Sequence[Model]) -> Catalog:
        """A catalogue of its own with the same names and prices, whose models take something else.

        Raises CatalogError when a model, an alias or a price is not the same.
        """
        if [(model.id, model.aliases, model.prices) for model in models] != [
            (model.id, model.aliases, model.prices) for model in self.models
        ]:
            raise CatalogError("other names or prices than the catalogue's", hint="only what models take may change")
        made = copy.copy(self)
        made.models = tuple(models)
        by_id = {model.id: model for model in models}
        made._by_name = {name: by_id[model.id] for name, model in self._by_name.items()}
        return made

    def adopt(self, other: Catalog) -> None:
        """Let the models take what those of `other` take; names and prices must be the same, else CatalogError.

        Called in the thread of the event loop. A thread that reads meanwhile sees each model as it was or as it is,
        never a half: models are values, and each of the two references is replaced at once.
        """
        made = self.with_models(other.models)
        self.models, self._by_name = made.models, made._by_name

    def find(self, model_id: str) -> Model | None:
        """The model with this id or alias; None if the catalogue does not know it."""
        return self._by_name.get(model_id)

    def cost(self, usage: Usage, model_id: str, *, is_batch: bool = False) -> int | None:
        """What `usage` costs when `model_id` answered, in pico-dollars; None where a model or a price is unknown.

        Message Batches prices hold if `is_batch`, or if the usage itself says so. Iterations are priced at the model
        they name. Fast mode on a model without a fast price, and US inference on one without a US price, count at the
        standard price. Web searches cost the same everywhere. A fraction of a pico-dollar is rounded half up, once.
        """
        return self._price(usage, model_id, None, is_batch)

    def baseline(self, usage: Usage, asked_id: str, answered_id: str, *, is_batch: bool = False) -> int | None:
        """What the same usage would have cost on `asked_id`, in pico-dollars; None where a price is unknown.

        Iterations of the model that answered are priced at the model asked for; those of other models (an advisor, a
        fallback) at their own, as nothing says they would have gone away.
        """
        return self._price(usage, asked_id, answered_id, is_batch)

    def _price(self, usage: Usage, model_id: str, instead_of: str | None, is_batch: bool) -> int | None:
        table = self._tables.get(model_id)
        if table is None:
            return None
        terms = 0
        if is_batch or usage.service_tier == "batch":
            terms = BATCH
        if usage.geo == "us":
            terms |= US
        if usage.speed == "fast":
            terms |= FAST
        total: int | None
        if usage.iterations:
            total = self._iterations(usage, model_id, instead_of, terms)
        else:
            total = table.cost(usage.tokens, terms)
        if total is None:
            return None
        total += usage.web_searches * self._search
        scale = self._scale
        return total if scale == 1 else (2 * total + scale) // (2 * scale)

    def _iterations(self, usage: Usage, model_id: str, instead_of: str | None, terms: int) -> int | None:
        """The sum over the billed parts, each at its own model and prompt length.

        The iterations are the bill when they cover the top-level counts: those of a loop of server tools add up to
        them, those of an executor that asked an advisor come to more, for there the input counts are of the first call
        only. So they are after a server-side fallback, where the top-level counts describe the last attempt only.
        Otherwise the list is torn, or has no `message`: then the top-level counts are what was billed for the message,
        and only the other kinds come on top.
        """
        entries = [(entry.kind, entry.model, entry.tokens) for entry in usage.iterations]
        messages = [tokens for kind, _, tokens in entries if kind == "message"]
        is_fallback = any(kind == "fallback_message" for kind, _, _ in entries)
        if not is_fallback and not covers(add_up(messages), usage.tokens):
            entries = [entry for entry in entries if entry[0] != "message"]
            entries.append(("message", None, usage.tokens))
        replaced = None if instead_of is None else self._identity(instead_of)
        total = 0
        for _, named, tokens in entries:
            is_own = named is None or (replaced is not None and self._identity(named) == replaced)
            table = self._tables.get(model_id if is_own or named is None else named)
            part = None if table is None else table.cost(tokens, terms)
            if part is None:
                return None
            total += part
        return total

    def _identity(self, name: str) -> str:
        model = self._by_name.get(name)
        return name if model is None else model.id


def _by_name(models: Iterable[Model]) -> dict[str, Model]:
    found: dict[str, Model] = {}
    for model in models:
        for name in (model.id, *model.aliases):
            if name in found:
                raise CatalogError(f"`{name}` names two models of the catalogue", hint="ids and aliases are unique")
            found[name] = model
    return found


def add_up(parts: Iterable[Tokens]) -> Tokens:
    """The category-wise sum of token counts."""
    totals = [0, 0, 0, 0, 0]
    for part in parts:
        for index, count in enumerate(
            (part.input, part.cache_read, part.cache_write_5m, part.cache_write_1h, part.output)
        ):
            totals[index] += count
    return Tokens(*totals)


def covers(parts: Tokens, whole: Tokens) -> bool:
    """Whether no category of `whole` has more tokens than `parts`.

    Writes to the prompt cache are one category, as parts may be split where the whole is not; but an hour is dearer
    than five minutes, so that parts which know of fewer such writes are not the bill.
    """
    return (
        parts.input >= whole.input
        and parts.output >= whole.output
        and parts.cache_read >= whole.cache_read
        and parts.cache_write_1h >= whole.cache_write_1h
        and parts.cache_write_5m + parts.cache_write_1h >= whole.cache_write_5m + whole.cache_write_1h
    )


def read_catalog(document: Mapping[str, Any]) -> Catalog:
    """The catalogue in a parsed document (`schema_version: 1`, `models: [...]`).

    Raises CatalogError, which names the model and the field.
    """
    if not isinstance(document, Mapping):
        raise CatalogError("the catalogue is not a mapping", hint="start from the packaged `models.yaml`")
    if document.get("schema_version") != 1:
        raise CatalogError(f"`schema_version` is `{document.get('schema_version')}`, expected 1")
    records = document.get("models")
    if not isinstance(records, list) or not records:
        raise CatalogError("`models` is missing or empty, expected a list of models")
    rules = document.get("global_rules", {})
    search = rules.get("web_search_usd_per_search", 0.01) if isinstance(rules, Mapping) else 0.01
    return Catalog(
        [read_model(record, index) for index, record in enumerate(records)],
        web_search_pusd=pusd(search, PUSD_PER_USD, "`global_rules.web_search_usd_per_search`"),
        as_of=str(document.get("as_of", "undated")),
    )

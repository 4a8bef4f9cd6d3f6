"""`Model`: what one model takes and how far it reaches, and how its record in the catalogue is read.

A field that a record leaves out is unknown: None here, and a doubt for whoever asks. A misspelled field is an error,
because silence would turn a rule off.
Source: Anthropic model pages and fact sheet, sections 1, 3 and 4.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from router.catalog.prices import Prices, read_prices
from router.errors import CatalogError

_LIFECYCLES = ("active", "deprecated", "retired")
_SAMPLING = ("accepted", "default_only", "rejected")
_THINKING_TYPES = ("adaptive", "enabled", "disabled", "between_tools")
_THINKING_DEFAULTS = ("adaptive", "off", "not_supported")
EFFORT_ORDER = ("low", "medium", "high", "xhigh", "max")

# Every field of a record, those that are only documentation included: any other name is a misspelling.
_FIELDS = frozenset(
    {
        *("id", "aliases", "display_name", "line", "lifecycle", "released", "deprecated", "retires", "retires_kind"),
        *("context_window", "max_output_tokens", "max_output_tokens_batch_beta", "tokenizer", "min_cacheable_tokens"),
        *("usd_per_mtok", "cache_read_multiplier", "batch_multiplier", "long_prompt_tier", "fast_mode"),
        *("us_inference_multiplier", "thinking", "effort", "sampling_params_2023_06_01", "sampling_params_2026_10_21"),
        *("assistant_prefill", "forced_tool_choice", "mid_conversation_system", "mid_conversation_tool_changes"),
        *("per_message_effort", "keeps_prior_turn_thinking", "preserved_thinking_check", "reads_thinking_from"),
        *("thinking_blocks_account_bound", "structured_outputs", "task_budgets", "compaction_beta"),
        *("programmatic_tool_calling", "web_tools_dynamic_filtering", "computer_use", "image_limits"),
        *("tool_use_prompt_tokens", "safety_refusals", "server_fallback_targets", "priority_tier"),
        *("requires_30_day_retention", "rate_limit_pool", "knowledge_cutoff", "provider_ids", "uncertain"),
    }
)


@dataclass(frozen=True, slots=True)
class Thinking:
    """What a model does with the `thinking` parameter.

    `accepts` are the `thinking.type` values that are not a 400. `default` says what an omitted parameter means:
    `adaptive` (it thinks), `off`, or `not_supported`. The two `_max_effort` are the highest effort level that goes
    with that type, None for no limit.
    """

    accepts: frozenset[str]
    default: str
    display: str | None
    disabled_max_effort: str | None
    between_tools_max_effort: str | None
    budget_tokens_min: int

    @property
    def is_on_by_default(self) -> bool:
        """Whether the model thinks when the request says nothing about it."""
        return self.default == "adaptive"


@dataclass(frozen=True, slots=True)
class FastMode:
    """How a model offers `speed: "fast"`; `removed_on` is an ISO date after which it no longer does."""

    requires_beta: bool
    removed_on: str | None


@dataclass(frozen=True, slots=True)
class Accepts:
    """The request rules of one model: False means the request gets a 400, None that nobody has said.

    `effort_levels` is empty where the parameter itself is a 400. `sampling_2023` and `sampling_2026` are `accepted`,
    `default_only` (any other value is a 400) or `rejected`, for API versions 2023-06-01 and 2026-10-21.
    `computer_tools` are the tool types of computer use that it takes. `reads_thinking_from` are ids of models whose
    thinking blocks it can use. `denied` are capabilities that the API's own list of models denies and that no other
    field speaks of, by the names of that list (see `capabilities`); the catalogue's file denies none.
    """

    thinking: Thinking
    effort_levels: frozenset[str]
    default_effort: str | None
    sampling_2023: str
    sampling_2026: str
    assistant_prefill: bool | None
    forced_tool_choice: bool | None
    mid_conversation_system: bool | None
    mid_conversation_tool_changes: bool | None
    per_message_effort: bool | None
    inference_geo: bool
    fast_mode: FastMode | None
    structured_outputs: bool | None
    task_budgets: bool | None
    compaction: bool | None
    programmatic_tool_calling: bool | None
    web_tools_dynamic_filtering: bool | None
    computer_tools: frozenset[str]
    priority_tier: bool | None
    requires_retention: bool | None
    max_images: int | None
    server_fallback_targets: tuple[str, ...] | None
    reads_thinking_from: frozenset[str]
    denied: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Model:
    """One model of the catalogue. Limits are tokens; dates are ISO dates; `prices` is None when no price is known.

    `lifecycle` is active, deprecated or retired (a retired id answers 404). `tokenizer` names the generation: the same
    text is about 30% more tokens with `2026` than with `2024`. `prefix_check` says for which accounts the history
    behind replayed thinking is verified: `all`, `some`, or `none` (the check does not run).
    """

    id: str
    aliases: tuple[str, ...]
    display_name: str
    line: str
    lifecycle: str
    released: str | None
    deprecated: str | None
    retires: str | None
    retires_kind: str | None
    context_window: int
    max_output_tokens: int
    max_output_tokens_batch: int | None
    tokenizer: str
    min_cacheable_tokens: int
    keeps_prior_turn_thinking: bool | None
    prefix_check: str
    prices: Prices | None
    accepts: Accepts

    @property
    def checks_thinking_prefix(self) -> bool:
        """Whether it may answer 400 when the history behind a replayed thinking block was changed."""
        return self.prefix_check != "none"

    @property
    def is_retired(self) -> bool:
        """Whether the API answers 404 for it."""
        return self.lifecycle == "retired"


class _Record:
    """One record being read: typed access whose errors name the model and the field."""

    __slots__ = ("_where", "values")

    def __init__(self, values: object, where: str) -> None:
        if not isinstance(values, Mapping):
            raise CatalogError(f"{where} is `{values}`, expected a mapping")
        self.values: Mapping[str, Any] = values
        self._where = where

    def _wrong(self, name: str, expected: str) -> CatalogError:
        return CatalogError(f"{self._where}.{name} is `{self.values.get(name)}`, expected {expected}")

    def text(self, name: str) -> str:
        value = self.text_or_none(name)
        if not value:
            raise self._wrong(name, "text")
        return value

    def text_or_none(self, name: str) -> str | None:
        value = self.values.get(name)
        if value is not None and not isinstance(value, str):
            raise self._wrong(name, "text")
        return value

    def one_of(self, name: str, choices: tuple[str, ...]) -> str:
        value = self.values.get(name)
        if value not in choices:
            raise self._wrong(name, "one of " + ", ".join(f"`{choice}`" for choice in choices))
        return str(value)

    def one_of_or_none(self, name: str, choices: tuple[str, ...]) -> str | None:
        return None if self.values.get(name) is None else self.one_of(name, choices)

    def texts(self, name: str, choices: tuple[str, ...] = ()) -> tuple[str, ...]:
        value = self.values.get(name)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._wrong(name, "a list of texts")
        if choices and not set(value) <= set(choices):
            raise self._wrong(name, "a list out of " + ", ".join(f"`{choice}`" for choice in choices))
        return tuple(value)

    def count(self, name: str) -> int:
        value = self.count_or_none(name)
        if value is None:
            raise self._wrong(name, "a count of tokens")
        return value

    def count_or_none(self, name: str) -> int | None:
        value = self.values.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise self._wrong(name, "a count")
        return value

    def claim(self, name: str) -> bool | None:
        value = self.values.get(name)
        if value is not None and not isinstance(value, bool):
            raise self._wrong(name, "true, false or null")
        return value

    def part(self, name: str) -> _Record:
        value = self.values.get(name)
        return _Record({} if value is None else value, f"{self._where}.{name}")

    def has(self, name: str) -> bool:
        return self.values.get(name) is not None


def read_model(values: object, index: int) -> Model:
    """The model that one record of the catalogue describes; `index` is its place in the list.

    Raises CatalogError, which names the model and the field.
    """
    name = values.get("id") if isinstance(values, Mapping) else None
    where = f"`{name}`" if isinstance(name, str) else f"`models[{index}]`"
    record = _Record(values, where)
    for field in record.values:
        if field not in _FIELDS:
            near = difflib.get_close_matches(str(field), _FIELDS, n=1)
            raise CatalogError(
                f"{where} has an unknown field `{field}`", hint=f"did you mean `{near[0]}`?" if near else ""
            )
    return Model(
        id=record.text("id"),
        aliases=record.texts("aliases"),
        display_name=record.text_or_none("display_name") or record.text("id"),
        line=record.text("line"),
        lifecycle=record.one_of("lifecycle", _LIFECYCLES),
        released=record.text_or_none("released"),
        deprecated=record.text_or_none("deprecated"),
        retires=record.text_or_none("retires"),
        retires_kind=record.text_or_none("retires_kind"),
        context_window=record.count("context_window"),
        max_output_tokens=record.count("max_output_tokens"),
        max_output_tokens_batch=record.count_or_none("max_output_tokens_batch_beta"),
        tokenizer=record.text("tokenizer"),
        min_cacheable_tokens=record.count_or_none("min_cacheable_tokens") or 0,
        keeps_prior_turn_thinking=record.claim("keeps_prior_turn_thinking"),
        prefix_check=_read_prefix_check(record.part("preserved_thinking_check")),
        prices=read_prices(record.values, where),
        accepts=_read_accepts(record),
    )


def _read_prefix_check(check: _Record) -> str:
    """`all`, `some` or `none`; what is not said counts as the check at its strictest."""
    if check.claim("runs") is False:
        return "none"
    accounts = check.text_or_none("enforced_for") or "all"
    return "all" if accounts.startswith("all") else "some"


def _read_readers(record: _Record) -> frozenset[str]:
    """The entries of `reads_thinking_from`; a list of earlier models that is only inferred does not count."""
    entries = frozenset(record.texts("reads_thinking_from"))
    if any(doubt.startswith("reads_thinking_from") for doubt in record.texts("uncertain")):
        return frozenset(entry for entry in entries if not entry.startswith("models_up_to_"))
    return entries


def _read_accepts(record: _Record) -> Accepts:
    thinking, effort, fast = record.part("thinking"), record.part("effort"), record.part("fast_mode")
    words = (record.text_or_none("computer_use") or "").replace("(", " ").split()
    return Accepts(
        thinking=Thinking(
            accepts=frozenset(thinking.texts("accepts", _THINKING_TYPES)),
            default=thinking.one_of("default_when_omitted", _THINKING_DEFAULTS),
            display=thinking.text_or_none("default_display"),
            disabled_max_effort=thinking.one_of_or_none("disabled_max_effort", EFFORT_ORDER),
            between_tools_max_effort=thinking.one_of_or_none("between_tools_max_effort", EFFORT_ORDER),
            budget_tokens_min=thinking.count_or_none("budget_tokens_min") or 1024,
        ),
        effort_levels=frozenset(effort.texts("levels", EFFORT_ORDER)),
        default_effort=effort.one_of_or_none("default", EFFORT_ORDER),
        sampling_2023=record.one_of("sampling_params_2023_06_01", _SAMPLING),
        sampling_2026=record.one_of("sampling_params_2026_10_21", _SAMPLING),
        assistant_prefill=record.claim("assistant_prefill"),
        forced_tool_choice=record.claim("forced_tool_choice"),
        mid_conversation_system=record.claim("mid_conversation_system"),
        mid_conversation_tool_changes=record.claim("mid_conversation_tool_changes"),
        per_message_effort=record.claim("per_message_effort"),
        inference_geo=record.has("us_inference_multiplier"),
        fast_mode=FastMode(fast.claim("requires_beta") is not False, fast.text_or_none("removed_on"))
        if record.has("fast_mode")
        else None,
        structured_outputs=record.claim("structured_outputs"),
        task_budgets=record.claim("task_budgets"),
        compaction=record.claim("compaction_beta"),
        programmatic_tool_calling=record.claim("programmatic_tool_calling"),
        web_tools_dynamic_filtering=record.claim("web_tools_dynamic_filtering"),
        computer_tools=frozenset(word for word in words if word.startswith("computer_")),
        priority_tier=record.claim("priority_tier"),
        requires_retention=record.claim("requires_30_day_retention"),
        max_images=record.part("image_limits").count_or_none("max_images_per_request"),
        server_fallback_targets=record.texts("server_fallback_targets")
        if record.has("server_fallback_targets")
        else None,
        reads_thinking_from=_read_readers(record),
    )

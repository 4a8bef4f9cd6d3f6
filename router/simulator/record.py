"""The models as the simulator knows them: one record per model of `models.yaml`, read here and nowhere else.

Read apart from `router.catalog` on purpose: the simulator judges the router, so it must not share its mistakes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from router.simulator.refusal import Refusal

EARLIER = "models_up_to_opus_4_8_sonnet_5_haiku_4_5"
LATE_GENERATIONS = ("5-1", "5-2", "5-5")


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """One model: `fields` is its record in `models.yaml`, under the names used there."""

    id: str
    fields: Mapping[str, Any]

    @property
    def thinking_types(self) -> tuple[str, ...]:
        """The values of `thinking.type` that are not refused."""
        return tuple(self.fields["thinking"]["accepts"])

    @property
    def thinks_by_default(self) -> bool:
        """Whether leaving `thinking` out means that the model thinks."""
        return bool(self.fields["thinking"]["default_when_omitted"] == "adaptive")

    @property
    def default_display(self) -> str:
        """`omitted` or `summarized`: how thinking comes back when the request does not say."""
        return self.fields["thinking"].get("default_display") or "summarized"

    @property
    def effort_levels(self) -> tuple[str, ...]:
        """The levels of `output_config.effort`; empty when the parameter itself is refused."""
        return tuple(self.fields["effort"]["levels"])

    @property
    def default_effort(self) -> str | None:
        """The effort that leaving the parameter out stands for."""
        default = self.fields["effort"]["default"]
        return None if default is None else str(default)

    @property
    def context_window(self) -> int:
        """The longest prompt, in tokens."""
        return int(self.fields["context_window"])

    def output_cap(self, *, is_long_batch: bool) -> int:
        """The largest `max_tokens`; `is_long_batch` is a batch item under the `output-300k` beta."""
        longer = self.fields["max_output_tokens_batch_beta"] if is_long_batch else None
        return int(longer or self.fields["max_output_tokens"])

    @property
    def computer_tools(self) -> tuple[str, ...] | None:
        """The computer-use tool types that are not refused; None when the record does not say."""
        text = self.fields["computer_use"]
        return None if text is None else tuple(re.findall(r"computer_\w+", text))

    @property
    def tokenizer_factor(self) -> float:
        """Tokens relative to the 2024 tokenizer for the same text."""
        return 1.3 if str(self.fields["tokenizer"]) == "2026" else 1.0

    @property
    def is_older_sampler(self) -> bool:
        """A 4.5-generation model or older: sampling parameters, but not temperature and top_p together."""
        return self.fields["sampling_params_2023_06_01"] == "accepted" and "adaptive" not in self.thinking_types

    @property
    def is_history_checked(self) -> bool:
        """Whether replayed thinking is held against the history before it.

        The simulated account counts as created on or after 2026-08-31, for which every model that runs the check
        enforces it.
        """
        return bool(self.fields["preserved_thinking_check"]["runs"])


class Roster:
    """Every model of the snapshot, found by id or alias."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.models = tuple(ModelRecord(entry["id"], entry) for entry in document["models"])
        self.global_rules: Mapping[str, Any] = document["global_rules"]
        self._by_name = {name: model for model in self.models for name in (model.id, *model.fields["aliases"])}

    def known(self, name: str) -> ModelRecord | None:
        """The record of an id or alias, retired ones included."""
        return self._by_name.get(name)

    def usable(self, name: Any) -> ModelRecord:
        """The record of a model that answers; raises the 404 of an unknown or retired one."""
        model = self._by_name.get(name) if isinstance(name, str) else None
        if model is None or model.fields["lifecycle"] == "retired":
            raise Refusal(f"model: {name}", 404)
        return model

    def can_read(self, reader: ModelRecord, producer_id: str) -> bool:
        """Whether `reader` can use the thinking blocks that `producer_id` wrote; others are dropped in silence."""
        is_inferred = any(doubt.startswith("reads_thinking_from") for doubt in reader.fields["uncertain"])
        entries = list(reader.fields["reads_thinking_from"])
        if entries and entries[0].startswith("same_as:"):
            entries = list(self._by_name[entries[0].removeprefix("same_as:")].fields["reads_thinking_from"])
        for entry in entries:
            named = self.known(entry.split(" ", 1)[0])  # an id, or the alias of one
            if named is not None and named.id == producer_id:
                return True
            # The table of readers names no reader whose list of earlier models is only inferred.
            if entry == EARLIER and not is_inferred and self._is_earlier(producer_id):
                return True
        return False

    def _is_earlier(self, model_id: str) -> bool:
        """Opus up to 4.8, Sonnet up to 5, Haiku up to 4.5: the marker of `reads_thinking_from`."""
        model = self._by_name.get(model_id)
        if model is None or model.fields["line"] not in ("opus", "sonnet", "haiku"):
            return False
        return model.id != "claude-opus-5" and not model.id.endswith(LATE_GENERATIONS)


def load_roster() -> Roster:
    """Read the `models.yaml` that is shipped with the package."""
    text = resources.files("router").joinpath("data/models.yaml").read_text(encoding="utf-8")
    return Roster(yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))  # noqa: S506 - a safe loader

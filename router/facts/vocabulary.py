"""The vocabulary of policy conditions: every fact, its type and what it means, declared once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from router.classify.label import TASKS

Kind = Literal["text", "integer", "number", "flag", "list"]
Cost = Literal["counted", "read", "labelled"]  # from the one pass; from the words; from the classifier

WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
LABEL_FACTS = ("task", "difficulty", "confidence", "p_hard")
HEADER_PREFIX = "header."
# Never readable by a rule: they hold credentials.
SECRET_HEADERS = ("authorization", "proxy-authorization", "x-api-key", "cookie")
MASKED = "(set)"  # what a trace has in the place of a value that may be a credential
_SECRET_WORDS = ("key", "token", "secret", "auth", "cookie", "session", "passw", "credential", "signature")


@dataclass(frozen=True, slots=True)
class FactSpec:
    """One word of the vocabulary: its type, what it means, when it is worked out, and its values where they are few."""

    name: str
    kind: Kind
    meaning: str
    values: tuple[str, ...] = ()  # the only values it can have; empty: any
    cost: Cost = "counted"


_SPECS = (
    FactSpec("requested_model", "text", "the model id as the client wrote it"),
    FactSpec(
        "requested_line",
        "text",
        "the line of that model in the catalogue; absent for `auto`, `lane:NAME` and unknown models",
        ("haiku", "sonnet", "opus", "fable", "mythos"),
    ),
    FactSpec(
        "input_tokens", "integer", "estimated prompt length in tokens of the asked model, images and tools included"
    ),
    FactSpec("max_tokens", "integer", "the cap on the answer; absent for count_tokens"),
    FactSpec("messages", "integer", "number of messages"),
    FactSpec("turns", "integer", "number of user messages that are more than tool results"),
    FactSpec("stream", "flag", "whether the answer is streamed"),
    FactSpec("tools", "integer", "number of tools declared"),
    FactSpec("tool_names", "list", "names of the tools declared"),
    FactSpec("forced_tool", "flag", "whether `tool_choice` is `any` or `tool`"),
    FactSpec("structured_output", "flag", "whether an output format (JSON schema) is asked for"),
    FactSpec("images", "integer", "number of images, those inside tool results included"),
    FactSpec("documents", "integer", "number of documents (PDF or text)"),
    FactSpec("thinking", "text", "`thinking.type`", ("adaptive", "enabled", "disabled", "between_tools")),
    FactSpec("effort", "text", "`output_config.effort`", ("low", "medium", "high", "xhigh", "max")),
    FactSpec("system_chars", "integer", "characters of system prompt"),
    FactSpec("code_share", "number", "share of lines that look like program code, 0 to 1", (), "read"),
    FactSpec("language", "text", "language of the last user text, ISO 639-1; absent when unsure", (), "read"),
    FactSpec("in_tool_loop", "flag", "whether the request answers a tool call"),
    FactSpec("conversation", "text", "`new`: one user turn and no answer yet; else `warm`", ("new", "warm")),
    FactSpec(
        "client",
        "text",
        "the program that calls, from its user agent",
        ("python-sdk", "ts-sdk", "claude-code", "curl", "other"),
    ),
    FactSpec("request_class", "text", "what Claude Code says of the request: main, subagent, compaction, …"),
    FactSpec("user", "text", "`metadata.user_id`; recorded only as a hash"),
    FactSpec("tenant", "text", "the tenant of the key"),
    FactSpec("key", "text", "the name of the router's own key"),
    FactSpec("policy", "text", "the policy in use"),
    FactSpec("betas", "list", "values of `anthropic-beta`"),
    FactSpec("hour", "integer", "hour of the day, 0 to 23, UTC"),
    FactSpec("weekday", "text", "day of the week, UTC", WEEKDAYS),
    FactSpec("task", "text", "label: what kind of work is asked for", TASKS, "labelled"),
    FactSpec("difficulty", "number", "label: 0 (one step) to 1 (olympiad, open-ended engineering)", (), "labelled"),
    FactSpec("confidence", "number", "label: probability that `task` is right, 0 to 1", (), "labelled"),
    FactSpec("p_hard", "number", "label: probability that the big model is needed, 0 to 1", (), "labelled"),
)

FACTS: Mapping[str, FactSpec] = MappingProxyType({spec.name: spec for spec in _SPECS})
"""Every fact but the `header.NAME` family, in the order in which `router policy facts` prints them."""


def may_hold_secret(header: str) -> bool:
    """Whether the value of a header is never recorded, by the words in its name (lower case); a rule may read it."""
    return any(word in header for word in _SECRET_WORDS)


def fact_spec(name: str) -> FactSpec | None:
    """The declaration of a fact, `header.NAME` (lower case, no credential) among them; None for an unknown name."""
    if name.startswith(HEADER_PREFIX):
        header = name[len(HEADER_PREFIX) :]
        if not header or header in SECRET_HEADERS or header != header.lower():
            return None
        return FactSpec(name, "text", f"the request header `{header}`")
    return FACTS.get(name)

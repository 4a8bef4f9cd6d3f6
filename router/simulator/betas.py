"""The `anthropic-version` and `anthropic-beta` headers: which values exist and which fields each one opens.

Source: `anthropic_beta_param` of the official SDK 2.12, the betas that are accepted but no longer needed, and those
that Claude Code sends.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from router.simulator.refusal import Refusal

OLD_VERSION = "2023-06-01"
NEW_VERSION = "2026-10-21"

_BETA_NAMES = """
computer-use-2024-10-22 computer-use-2025-01-24 computer-use-2025-11-24 output-128k-2025-02-19 mcp-client-2025-04-04
mcp-client-2025-11-20 mcp-client-2026-09-15 dev-full-thinking-2025-05-14 interleaved-thinking-2025-05-14
code-execution-2025-05-22 context-1m-2025-08-07 context-management-2025-06-27
model-context-window-exceeded-2025-08-26 fast-mode-2026-02-01 output-300k-2026-03-24 user-profiles-2026-03-24
user-profiles-2026-08-18 user-profiles-2026-09-04 user-profiles-billing-2026-10-01 advisor-tool-2026-03-01
managed-agents-2026-04-01 agent-memory-2026-07-22 dreaming-2026-04-21 thinking-token-count-2026-05-13
server-side-fallback-2026-06-01 server-side-fallback-2026-07-01 fallback-credit-2026-06-01
fallback-credit-2026-07-01 mid-conversation-tool-changes-2026-07-01 inline-tools-2026-09-15 compact-2026-01-12
compact-2026-09-04 structured-outputs-2025-11-13 task-budgets-2026-03-13 thinking-display-updates-2026-08-18
thinking-binding-controls-2026-08-01 mid-conversation-output-config-2026-07-01
mid-conversation-system-clear-at-2026-08-21 message-threads-2026-08-12 mcp-tunnels-2026-06-22 webhooks-2026-10-07
ce-plugins-2026-09-01 spend-limit-reads-2026-09-26 telemetry-destinations-2026-08-11 admin-user-sign-out-2026-10-08
analytics-usage-cost-2026-08-24 experimental-claude-tag-2026-10-21 ce-user-management-2026-07-13
ce-claude-code-managed-settings-2026-10-06 prompt-caching-2024-07-31 pdfs-2024-09-25 token-counting-2024-11-01
token-efficient-tools-2025-02-19 extended-cache-ttl-2025-04-11 cache-diagnosis-2026-04-07 message-batches-2024-09-24
files-api-2025-04-14 skills-2025-10-02 oauth-2025-04-20 claude-code-20250219 per-turn-control-2026-07-01
advanced-tool-use-2025-11-20 effort-2025-11-24
"""
KNOWN_BETAS = frozenset(_BETA_NAMES.split())

BINDING = "thinking-binding-controls-2026-08-01"
TOKEN_COUNT = "thinking-token-count-2026-05-13"  # noqa: S105 - the name of a beta, not a secret
LONG_OUTPUT = "output-300k-2026-03-24"
FAST_MODE = "fast-mode-2026-02-01"
TASK_BUDGETS = ("task-budgets-2026-03-13",)
TOOL_CHANGES = ("mid-conversation-tool-changes-2026-07-01",)
PER_MESSAGE = ("mid-conversation-output-config-2026-07-01", "per-turn-control-2026-07-01")
CLEAR_AT = ("mid-conversation-system-clear-at-2026-08-21",)
COMPACT_EDIT = ("compact-2026-01-12",)
DISPLAY_UPDATES = ("thinking-display-updates-2026-08-18",)

# Top-level fields of the body that exist only under one of these betas.
TOP_LEVEL_BETAS: Mapping[str, tuple[str, ...]] = {
    "billing_policy": ("user-profiles-billing-2026-10-01",),
    "compaction": ("compact-2026-09-04",),
    "context_management": ("context-management-2025-06-27", "compact-2026-01-12"),
    "fallbacks": ("server-side-fallback-2026-06-01", "server-side-fallback-2026-07-01"),
    "fallback_credit_token": ("fallback-credit-2026-06-01", "fallback-credit-2026-07-01"),
    "mcp_servers": ("mcp-client-2025-04-04", "mcp-client-2025-11-20", "mcp-client-2026-09-15"),
    "thread": ("message-threads-2026-08-12",),
    "output_format": ("structured-outputs-2025-11-13",),
}

# Tool types that exist only under one of these betas.
TOOL_BETAS: Mapping[str, tuple[str, ...]] = {
    "computer_20241022": ("computer-use-2024-10-22",),
    "computer_20250124": ("computer-use-2025-01-24",),
    "computer_20251124": ("computer-use-2025-11-24",),
    "bash_20241022": ("computer-use-2024-10-22",),
    "text_editor_20241022": ("computer-use-2024-10-22",),
    "advisor_20260301": ("advisor-tool-2026-03-01",),
    "mcp_toolset": ("mcp-client-2025-11-20", "mcp-client-2026-09-15"),
}


def read_version(value: str | None) -> str:
    """The API version of a request; raises `Refusal` when the header is missing or names no version."""
    if value is None:
        raise Refusal("anthropic-version: header is required")
    if value not in (OLD_VERSION, NEW_VERSION):
        raise Refusal(f'anthropic-version: "{value}" is not a valid version')
    return value


def read_betas(values: Iterable[str]) -> frozenset[str]:
    """The betas of a request, from every `anthropic-beta` header line; raises `Refusal` for an unknown one."""
    found = [name for value in values for name in (part.strip() for part in value.split(",")) if name]
    unknown = [name for name in dict.fromkeys(found) if name not in KNOWN_BETAS]
    if unknown:
        named = ", ".join(f"`{name}`" for name in unknown)
        raise Refusal(
            f"Unexpected value(s) {named} for the `anthropic-beta` header. "
            "Please consult our documentation or try again without the header."
        )
    return frozenset(found)


def has_any(betas: frozenset[str], wanted: Iterable[str]) -> bool:
    """Whether one of the wanted betas came with the request."""
    return any(name in betas for name in wanted)

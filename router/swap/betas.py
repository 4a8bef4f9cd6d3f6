"""The beta headers of a request: those that are known to change nothing when the model does.

Source: `anthropic_beta_param` of the official SDK 2.12, the betas that are accepted but no longer needed, and those
that Claude Code sends.
"""

from __future__ import annotations

from collections.abc import Iterator

from router.swap.rules import shown

# Betas that do nothing, or nothing model-dependent, without their field in the body; the fields are checked.
# An unlisted beta may change what the model is asked to do in a way nobody here knows.
_KNOWN_BETAS = frozenset(
    {
        *("computer-use-2024-10-22", "computer-use-2025-01-24", "computer-use-2025-11-24", "output-128k-2025-02-19"),
        *("mcp-client-2025-04-04", "mcp-client-2025-11-20", "mcp-client-2026-09-15", "dev-full-thinking-2025-05-14"),
        *("interleaved-thinking-2025-05-14", "code-execution-2025-05-22", "context-1m-2025-08-07"),
        *("context-management-2025-06-27", "model-context-window-exceeded-2025-08-26", "fast-mode-2026-02-01"),
        *("output-300k-2026-03-24", "user-profiles-2026-03-24", "user-profiles-2026-08-18"),
        *("user-profiles-2026-09-04", "user-profiles-billing-2026-10-01", "advisor-tool-2026-03-01"),
        *("thinking-token-count-2026-05-13", "server-side-fallback-2026-06-01", "server-side-fallback-2026-07-01"),
        *("fallback-credit-2026-06-01", "fallback-credit-2026-07-01", "mid-conversation-tool-changes-2026-07-01"),
        *("inline-tools-2026-09-15", "compact-2026-01-12", "compact-2026-09-04", "structured-outputs-2025-11-13"),
        *("task-budgets-2026-03-13", "thinking-display-updates-2026-08-18", "thinking-binding-controls-2026-08-01"),
        *("mid-conversation-output-config-2026-07-01", "mid-conversation-system-clear-at-2026-08-21"),
        *("message-threads-2026-08-12", "prompt-caching-2024-07-31", "pdfs-2024-09-25", "token-counting-2024-11-01"),
        *("token-efficient-tools-2025-02-19", "extended-cache-ttl-2025-04-11", "cache-diagnosis-2026-04-07"),
        *("message-batches-2024-09-24", "files-api-2025-04-14", "skills-2025-10-02", "oauth-2025-04-20"),
        *("claude-code-20250219", "per-turn-control-2026-07-01", "advanced-tool-use-2025-11-20", "effort-2025-11-24"),
    }
)


def doubtful(names: tuple[str, ...]) -> Iterator[str]:
    """A reason for each beta that is not known to be harmless."""
    for name in names:
        if name not in _KNOWN_BETAS:
            yield f"beta `{shown(name)}` is not known to work here"

"""What a rule says of time: how often a lane is asked again, how long it may take, whether its answer may be late."""

from __future__ import annotations

from router.policy.grammar import (
    DEFERRED_KEYS,
    DEFERRING,
    MAX_DEFERRED_ITEMS,
    MAX_DEFERRED_S,
    MAX_RETRIES,
    MIN_DEFERRED_S,
    ON_TIMEOUT,
    RETRY_KEYS,
    TIMEOUT_KEYS,
)
from router.policy.reader import Reader
from router.policy.source import Node
from router.policy.words import seen
from router.policy.written import (
    DEFERRED_ALLOWED,
    NO_RETRY,
    OWN_TIMEOUTS,
    DeferredDirective,
    Retry,
    Timeouts,
)


class DirectiveReader(Reader):
    """Reads the values of `retry`, `timeout` and `deferred`; `what` is how messages call the rule."""

    def retry(self, node: Node | None, what: str) -> Retry:
        """A number, or `{times: N, on_timeout: WORD}`."""
        if node is None or node.kind != "map":
            return Retry(self.times(node, f"`retry` of {what}"))
        keys = self.keys(node, RETRY_KEYS, f"`retry` of {what}")
        if keys is not None and not node.value:
            self.source.report(node, f"`retry` of {what} says nothing", "retry: {times: 2, on_timeout: fallback}")
        if not keys:
            return NO_RETRY
        return Retry(
            self.times(keys.get("times"), f"`times` of {what}"),
            self.choice(keys.get("on_timeout"), f"`on_timeout` of {what}", ON_TIMEOUT),
        )

    def times(self, node: Node | None, what: str) -> int:
        """How many retries; none when another thing stands there."""
        if node is None:
            return 0
        if node.kind != "integer" or not 0 <= node.value <= MAX_RETRIES:
            self.source.report(node, f"{what} must be 0 to {MAX_RETRIES}, this is {seen(node)}")
            return 0
        return int(node.value)

    def timeouts(self, node: Node | None, what: str) -> Timeouts:
        """A duration, which is that of the first byte, or durations by phase."""
        if node is None:
            return OWN_TIMEOUTS
        if node.kind != "map":
            return Timeouts(first_byte_s=self.duration(node, f"`timeout` of {what}"))
        keys = self.keys(node, TIMEOUT_KEYS, f"`timeout` of {what}")
        if keys is not None and not node.value:
            self.source.report(node, f"`timeout` of {what} names no phase", "timeout: {first_byte: 30s, total: 5m}")
        found = {f"{name}_s": self.duration(each, f"`{name}` of {what}") for name, each in (keys or {}).items()}
        return Timeouts(**found)

    def deferred(self, node: Node | None, what: str) -> DeferredDirective:
        """One of the words, or `{mode: WORD, max_wait: 5s, max_items: 1000, real_time_after: 2h}`."""
        if node is None:
            return DEFERRED_ALLOWED
        if node.kind != "map":
            return DeferredDirective(self.choice(node, f"`deferred` of {what}", DEFERRING))
        keys = self.keys(node, DEFERRED_KEYS, f"`deferred` of {what}")
        if keys is not None and not node.value:
            self.source.report(node, f"`deferred` of {what} says nothing", "deferred: {mode: allow, max_wait: 5s}")
        if not keys:
            return DEFERRED_ALLOWED
        wait_s = self.deferral(keys.get("max_wait"), f"`max_wait` of {what}")
        late = keys.get("real_time_after")
        late_s = self.deferral(late, f"`real_time_after` of {what}")
        # A `max_wait` that was complained of says nothing that the other could be compared with.
        longest_s = wait_s or (None if "max_wait" in keys else DEFERRED_ALLOWED.max_wait_s)
        if late is not None and late_s is not None and longest_s is not None and late_s <= longest_s:
            wait = f"`{keys['max_wait'].value}`" if "max_wait" in keys else "`5s` where it is left out"
            problem = f"`real_time_after` of {what} must be longer than `max_wait`, this is {seen(late)}"
            self.source.report(late, problem, f"`max_wait` is {wait}: a batch that is not full would never be sent")
        return DeferredDirective(
            self.choice(keys.get("mode"), f"`mode` of {what}", DEFERRING),
            wait_s or DEFERRED_ALLOWED.max_wait_s,
            self.most_items(keys.get("max_items"), f"`max_items` of {what}"),
            late_s,
        )

    def deferral(self, node: Node | None, what: str) -> float | None:
        """Seconds that a deferred request may wait; None when nothing or another thing stands there."""
        seconds = self.duration(node, what) if node is not None else None
        if node is None or seconds is None or MIN_DEFERRED_S <= seconds <= MAX_DEFERRED_S:
            return seconds
        self.source.report(node, f"{what} must be `1ms` to `24h`, this is {seen(node)}", "such as `5s` or `2h`")
        return None

    def most_items(self, node: Node | None, what: str) -> int:
        """How many requests one batch may hold; the default when another thing stands there."""
        if node is None:
            return DEFERRED_ALLOWED.max_items
        if node.kind != "integer" or not 1 <= node.value <= MAX_DEFERRED_ITEMS:
            self.source.report(node, f"{what} must be 1 to {MAX_DEFERRED_ITEMS:,}, this is {seen(node)}")
            return DEFERRED_ALLOWED.max_items
        return int(node.value)

"""What a cache holds and is told: a complete answer, what a look-up came to, and which answers to forget."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from router.usage import Usage
from router.value import value_class

MAX_TTL_S = 30 * 86_400  # no entry lives longer, so that a purge need not be remembered longer


@value_class(frozen=True, slots=True)
class CacheEntry:
    """A complete stored answer: the bytes as first sent, what they cost, and whose they are.

    Times are Unix nanoseconds of the store's own clock. `asked_at_ns` is when the answer was asked for, so that a purge
    also reaches what was under way; nothing is replayed at `expires_at_ns` or later. `tenant` is who asked first.
    """

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    usage: Usage | None
    model_answered: str | None
    stop_reason: str | None
    asked_at_ns: int
    expires_at_ns: int
    tenant: str
    rule: str
    model: str  # the model that was sent
    stored_at_ns: int = 0  # when it had come to its end


@value_class(frozen=True, slots=True)
class Found:
    """What a look-up came to.

    `entry` is an answer to replay. `lead`: nobody is at it, the caller makes the call for all processes, and names this
    token when it puts, hands over or releases. `leader`: another process is at it, look again soon with this token.
    Nothing at all: call for yourself.
    `is_unanswered`: a store that answers as a rule did not this time, so that there may be a leader all the same.
    """

    entry: CacheEntry | None = None
    lead: str | None = None
    leader: str | None = None
    is_unanswered: bool = False


NOTHING = Found()
UNANSWERED = Found(is_unanswered=True)


@dataclass(frozen=True, slots=True)
class Purge:
    """Which answers are not to be replayed any more: all that were asked for until `until_ns` and fit the rest.

    None means any. `tenant` is the name in the traces.
    """

    until_ns: int
    tenant: str | None = None
    rule: str | None = None
    model: str | None = None

    def takes(self, entry: CacheEntry) -> bool:
        """Whether this entry is meant."""
        return self.takes_what(entry.asked_at_ns, entry.tenant, entry.rule, entry.model)

    def takes_what(self, asked_at_ns: int, tenant: str, rule: str, model: str) -> bool:
        """Whether an entry with these marks is meant."""
        return (
            asked_at_ns <= self.until_ns
            and self.tenant in (None, tenant)
            and self.rule in (None, rule)
            and self.model in (None, model)
        )

    def covers(self, other: Purge) -> bool:
        """Whether whatever `other` means is meant by this one too."""
        return (
            other.until_ns <= self.until_ns
            and self.tenant in (None, other.tenant)
            and self.rule in (None, other.rule)
            and self.model in (None, other.model)
        )


@dataclass(frozen=True, slots=True)
class PurgeReport:
    """What a purge came to: entries deleted, processes that no longer replay them, and those not heard of.

    A process that is `unheard` cannot reach the store; it forgets its own copies within `COPY_S` seconds.
    """

    deleted: int
    told: int = 1
    unheard: tuple[str, ...] = ()
    problem: str = ""  # why deleting ended early; what is left is not replayed all the same


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Counts of the whole cache: summed over its processes, and what the shared store holds (None: there is none)."""

    processes: Mapping[str, Mapping[str, int]]
    stored: int | None = None
    total: Mapping[str, int] = field(default_factory=dict)


def summed(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The sum of counts of several processes, name by name."""
    total: dict[str, int] = {}
    for count in counts:
        for name, value in count.items():
            total[name] = total.get(name, 0) + value
    return total


__all__ = ["MAX_TTL_S", "NOTHING", "UNANSWERED", "CacheEntry", "CacheStats", "Found", "Purge", "PurgeReport", "summed"]

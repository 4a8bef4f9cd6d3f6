"""Who is let in: a decision per request, made of a few integers, before its body is read.

What is bounded, and why each bound is another one:

- **Requests being worked on**, from their arrival until their answer begins (`max_working`). A stream that is being
  relayed costs a few microseconds a second and may stay for minutes, so it is not counted here.
- **Bytes of request bodies** that are held (`max_body_bytes`), until the last byte of the answer, for a body may have
  to be sent again. A body of up to `SMALL_BODY` is counted and never refused: the first bound covers it. What is only
  announced holds `ANNOUNCED_MAX` at most; beyond that a body counts as it comes.
- **Requests under way of one tenant, or of one key**, open streams included, where the operator set such a number.
- **The event loop's time**: see `brake.py`, which says how much of it one tenant may use per second, in units of work.
- **Memory** of the whole process: see `relieve`.

Fair between tenants: of a bound that all share, one tenant may take four times what is left of it. So a tenant alone
gets four fifths, a second one finds room at once, and n of them end up with equal shares, without anybody counting
who is there. The tenant that uses most meets its bound first; one below its share is let in to the last. A body is
judged with its own size, for one may be half of the bound.

No clock, no loop, no socket: times are arguments, and what is refused is said by a word of `REASONS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from router.serve.brake import Brake

REASONS = ("working", "tenant", "key", "bodies", "lag", "memory")
SMALL_BODY = 64 * 1024
UNIT_BYTES = 32 * 1024  # of a body that count as one more request: reading it takes about as long
ANNOUNCED_MAX = 1024 * 1024  # bytes of a body that count before they have come

_SHARE = 4  # times what is left
_ACCOUNTS_MAX = 10_000
_REMEMBERED_S = 60.0  # at the least, that a tenant keeps its account after it was seen
_TRICKLE = 8  # requests at work, one of a tenant, while memory is so short that nothing else is let in
NEWCOMERS = "\0new"  # the account of tenants that are first seen while the brake is on


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much is let in; None: no such bound.

    `max_working` and `max_of_tenant` are requests, `max_body_bytes` bytes of all bodies held. `large_body` is what
    counts as large (bytes) when memory is short.
    """

    max_working: int = 4_000
    max_body_bytes: int = 1024 * 1024 * 1024
    max_of_tenant: int | None = None
    large_body: int = 256 * 1024


class Account:
    """One tenant: what it has under way, and what it used lately."""

    __slots__ = ("body_bytes", "filled_s", "name", "refused", "seen_s", "tokens", "under_way", "used", "working")

    def __init__(self, name: str) -> None:
        self.name = name
        self.working = 0
        self.under_way = 0  # those being worked on and open streams
        self.body_bytes = 0
        self.used = 0  # units of work let in since the brake looked last
        self.refused = 0  # by the brake, since then
        self.tokens = 0.0
        self.filled_s = -1.0
        self.seen_s = 0.0  # when the brake last looked at what it had used


class Ticket:
    """The place of one request; give it back with `Admission.leave`, once."""

    __slots__ = ("account", "body_bytes", "is_working", "key", "tenant")

    def __init__(self, account: Account, body_bytes: int, key: str, tenant: str) -> None:
        self.account = account
        self.body_bytes = body_bytes  # that count: those that came, or were announced
        self.key = key  # of the router's own, where it has a bound of its own; else ""
        self.tenant = tenant
        self.is_working = True


class Admission:
    """The count of all that is under way in this process, and the decision on what comes next."""

    def __init__(self, bounds: Bounds, brake: Brake) -> None:
        self.bounds = bounds
        self.brake = brake
        self.working = self.under_way = self.body_bytes = 0
        self.entered = 0  # requests let in since the start
        self._large = 0  # bodies over SMALL_BODY that are held
        self._forgot_s = 0.0
        self._turned_away: dict[tuple[str, ...], int] = {}
        self._accounts: dict[str, Account] = {}
        self._newcomers = Account(NEWCOMERS)
        self._by_key: dict[str, int] = {}
        self._touched: dict[str, Account] = {}  # whoever came since the brake looked last
        self._most_body: int | None = None  # bytes of a body that is still let in while memory is short

    @property
    def turned_away(self) -> dict[tuple[str, ...], int]:
        """(tenant, reason) → requests since the start; a copy, for who reads it is in another thread."""
        return self._turned_away.copy()

    def enter(
        self, tenant: str, size: int, now_s: float, *, key: str = "", max_of_key: int | None = None
    ) -> Ticket | str:
        """A place for a request of `tenant` whose body has `size` bytes (0: not known yet), or a word of REASONS."""
        account = self._accounts.get(tenant)
        if account is None:
            account = self._account(tenant)
        name = account.name
        if name not in self._touched:
            self._touched[name] = account
        reason = self._reason(account, size, now_s, key, max_of_key)
        if reason:
            account.refused += reason == "lag"
            return self._turn_away(tenant, reason)
        account.used += 1 + size // UNIT_BYTES
        if size > SMALL_BODY:
            # One that finds an empty house and is over its share holds all of its size: nothing fits beside it.
            if size > ANNOUNCED_MAX and (self._large or not self._too_many_bytes(account, size)):
                size = ANNOUNCED_MAX
            self._large += 1
        account.working += 1
        account.under_way += 1
        account.body_bytes += size
        self.entered += 1
        self.working += 1
        self.under_way += 1
        self.body_bytes += size
        if max_of_key is None:
            return Ticket(account, size, "", tenant)
        self._by_key[key] = self._by_key.get(key, 0) + 1
        return Ticket(account, size, key, tenant)

    def grow(self, ticket: Ticket, size: int) -> str:
        """`size` more bytes of a body came than its ticket counts: a reason to refuse the rest, or ""."""
        account, after = ticket.account, ticket.body_bytes + size
        if self._most_body is not None and after > max(self._most_body, SMALL_BODY):
            return self._turn_away(ticket.tenant, "memory")
        if after > SMALL_BODY:
            was_large = ticket.body_bytes > SMALL_BODY
            if self._large > was_large and self._too_many_bytes(account, size):
                return self._turn_away(ticket.tenant, "bodies")
            self._large += not was_large
        ticket.body_bytes = after
        account.body_bytes += size
        self.body_bytes += size
        return ""

    def drop(self, ticket: Ticket) -> None:
        """The request is refused and its body let go: what is left is to tell its client, which is no work. Harmless
        when said twice."""
        self.begun(ticket)
        size, ticket.body_bytes = ticket.body_bytes, 0
        self._large -= size > SMALL_BODY
        ticket.account.body_bytes -= size
        self.body_bytes -= size

    def begun(self, ticket: Ticket) -> None:
        """The answer begins to go out: from here on it is an open stream. Harmless when said twice."""
        if ticket.is_working:
            ticket.is_working = False
            ticket.account.working -= 1
            self.working -= 1

    def leave(self, ticket: Ticket) -> None:
        """The request is over, however it ended."""
        account, size = ticket.account, ticket.body_bytes
        if ticket.is_working:
            account.working -= 1
            self.working -= 1
        account.under_way -= 1
        account.body_bytes -= size
        self.under_way -= 1
        self.body_bytes -= size
        self._large -= size > SMALL_BODY
        if ticket.key:
            left = self._by_key[ticket.key] - 1
            if left:
                self._by_key[ticket.key] = left
            else:
                del self._by_key[ticket.key]

    def relieve(self, most_body: int | None) -> None:
        """Memory is short: let in only bodies of up to `most_body` bytes, -1 for hardly a request; None: all is well.

        With -1 a few small ones are let in all the same, one of a tenant at a time: memory that is not given back must
        not be the end of all service. A body that is still coming is refused when it has grown beyond that.
        """
        self._most_body = most_body

    def look(self, lag_s: float, busy: float, seconds: float, now_s: float) -> bool:
        """Tell the brake how the last `seconds` were (see `Brake.look`); True when it went on or off."""
        used = [account.used for account in self._touched.values()]
        refused = sum(account.refused for account in self._touched.values())
        for account in self._touched.values():
            account.used = account.refused = 0
            account.seen_s = now_s
        self._touched = {}
        if len(self._accounts) * 2 > _ACCOUNTS_MAX and now_s - self._forgot_s >= 1:
            self._forget(now_s)
        return self.brake.look(lag_s, busy, seconds, sum(used), max(used, default=0), refused, now_s)

    def figures(self) -> Mapping[str, int]:
        """For the metrics: what is under way now."""
        return {
            "working": self.working,
            "streaming": self.under_way - self.working,
            "body_bytes": self.body_bytes,
            "tenants": len(self._accounts),
            "is_braking": int(self.brake.is_on),
        }

    def _reason(self, account: Account, size: int, now_s: float, key: str, max_of_key: int | None) -> str:
        bounds = self.bounds
        left = bounds.max_working - self.working
        if left <= 0 or account.working >= _SHARE * left:
            return "working"
        if bounds.max_of_tenant is not None and account.under_way >= bounds.max_of_tenant:
            return "tenant"
        if max_of_key is not None and self._by_key.get(key, 0) >= max_of_key:
            return "key"
        if size > SMALL_BODY and self._large and self._too_many_bytes(account, size):
            return "bodies"
        if self._most_body is not None and size > self._most_body and not self._is_trickle(account, size):
            return "memory"
        if self.brake.is_on and not self._may_use(account, 1 + size // UNIT_BYTES, now_s):
            return "lag"
        return ""

    def _too_many_bytes(self, account: Account, size: int) -> bool:
        """Whether `size` bytes more would be over the tenant's share. Who asks lets a body that is alone pass."""
        return account.body_bytes + size > _SHARE * (self.bounds.max_body_bytes - self.body_bytes - size)

    def _is_trickle(self, account: Account, size: int) -> bool:
        assert self._most_body is not None
        return self._most_body < 0 and size <= SMALL_BODY and not account.working and self.working < _TRICKLE

    def _may_use(self, account: Account, units: int, now_s: float) -> bool:
        """Take `units` from what the tenant may use per second; what is over is owed, so that a large one can pass."""
        brake = self.brake
        depth = brake.depth
        if account.filled_s < brake.since_s:  # it has not been here since the brake went on
            account.tokens = depth
        else:
            account.tokens = min(depth, account.tokens + (now_s - account.filled_s) * brake.level)
        account.filled_s = now_s
        if account.tokens <= 0:
            return False
        account.tokens -= units
        return True

    def _account(self, tenant: str) -> Account:
        """The account of a tenant that has none: its own, or that of all newcomers while there is no time to spare.

        Whoever sends a new credential with each request has one share between all of them, not one for each, and
        opens no accounts that those of known tenants would have to make room for.
        """
        if self.brake.is_on or len(self._accounts) >= _ACCOUNTS_MAX:
            return self._newcomers
        opened = self._accounts[tenant] = Account(tenant)
        return opened

    def _forget(self, now_s: float) -> None:
        """There are too many names: let those go that were not seen for longest, down to half as many.

        Not those with something under way, nor those seen lately: it would make newcomers of them.
        """
        self._forgot_s = now_s
        old = [
            account
            for account in self._accounts.values()
            if not account.under_way and now_s - account.seen_s >= _REMEMBERED_S
        ]
        old.sort(key=lambda account: account.seen_s)
        for account in old[: len(self._accounts) - _ACCOUNTS_MAX // 4]:
            del self._accounts[account.name]

    def _turn_away(self, tenant: str, reason: str) -> str:
        counted = (tenant, reason)
        found = self._turned_away.get(counted)
        if found is None and len(self._turned_away) >= _ACCOUNTS_MAX // 10:
            counted = ("other", reason)
            found = self._turned_away.get(counted, 0)
        self._turned_away[counted] = (found or 0) + 1
        return reason

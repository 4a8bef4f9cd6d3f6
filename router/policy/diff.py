"""Two policy sets compared on recorded requests: who changes lane, what it costs, what cannot be said.

A request that one of the two revisions served is on that side exactly as recorded: rule, lane, model, cost, baseline;
a lane it fell back to, too. Beyond these, both sets are taken to have been in force all along: each remembers its own
conversations, from the first request on, and what they would have done is forecast.

A forecast that stays on the model that served the request keeps its recorded cost exactly. For another model its usage
is priced anew: an estimate, as the length of another model's answer is not known; sums say how much of them is
estimated. Money is added up only where cost (both ways) and baseline are known, as in the reports; the rest is counted.
"""

from __future__ import annotations

from collections import OrderedDict
from decimal import Decimal
from typing import Any, NamedTuple

from router.affinity.binding import Binding, bound
from router.catalog.lookup import Catalog
from router.policy.compile import PolicySet
from router.policy.forecast import EARLIER_TURN, Forecast, Recorded, Refusals, Side, Soundness
from router.policy.moved import moved_usage, same_model
from router.trace.export import usd
from router.usage import Usage

MOST_CONVERSATIONS = 100_000  # remembered at a time: those heard of last, about 1 kB each
_MOST_WARM = 3  # models on which one conversation's prefix is remembered as written
_MOST_REASONS = 200  # told apart per side
_FIVE_MINUTES_S, _ONE_HOUR_S = 300.0, 3600.0


class Bill(NamedTuple):
    """What a request comes to on one side. `reads_cache` is None where the recorded request read no prompt cache."""

    cost_pusd: int | None
    baseline_pusd: int | None
    is_estimate: bool
    reads_cache: bool | None
    usage: Usage | None


class Talk(NamedTuple):
    """A conversation on one side: its binding (a text: not known), and (model, until) where its prefix is cached."""

    binding: Binding | str | None
    warm: tuple[tuple[str, float], ...]


_NEW = Talk(None, ())


class Group:
    """Sums over requests: counts, and pico-dollars of those whose money is known on both sides."""

    __slots__ = ("baseline", "cost", "estimated", "estimates", "moved", "requests", "unknown")

    def __init__(self) -> None:
        self.requests = self.moved = self.unknown = 0
        self.cost, self.baseline, self.estimated, self.estimates = [0, 0], [0, 0], [0, 0], [0, 0]

    def add(self, old: Bill, new: Bill, is_moved: bool) -> None:
        """Count a request."""
        self.requests += 1
        self.moved += is_moved
        if old.cost_pusd is None or new.cost_pusd is None or old.baseline_pusd is None or new.baseline_pusd is None:
            self.unknown += 1
            return
        cost, baseline = self.cost, self.baseline
        cost[0] += old.cost_pusd
        cost[1] += new.cost_pusd
        baseline[0] += old.baseline_pusd
        baseline[1] += new.baseline_pusd
        if old.is_estimate:
            self.estimated[0] += old.cost_pusd
            self.estimates[0] += 1
        if new.is_estimate:
            self.estimated[1] += new.cost_pusd
            self.estimates[1] += 1

    def merge(self, other: Group) -> None:
        """Add another group's sums."""
        self.requests += other.requests
        self.moved += other.moved
        self.unknown += other.unknown
        for mine, more in (
            (self.cost, other.cost),
            (self.baseline, other.baseline),
            (self.estimated, other.estimated),
            (self.estimates, other.estimates),
        ):
            mine[0] += more[0]
            mine[1] += more[1]

    def shown(self) -> dict[str, Any]:
        """The sums under their names in JSON; money as exact dollars."""
        before, after = ({
            "cost_usd": _usd(self.cost[side]),
            "baseline_usd": _usd(self.baseline[side]),
            "saved_usd": _usd(self.baseline[side] - self.cost[side]),
            "estimated_requests": self.estimates[side],
            "estimated_cost_usd": _usd(self.estimated[side]),
        } for side in (0, 1))  # fmt: skip
        return {
            "requests": self.requests,
            "lane_changes": self.moved,
            "unknown_cost": self.unknown,
            "old": before,
            "new": after,
            "cost_change_usd": _usd(self.cost[1] - self.cost[0]),
        }


class Tally(NamedTuple):
    """What a comparison has counted so far: plain enough to be sent from one process to another."""

    numbers: tuple[int, int, int, int, int, int, int]
    as_recorded: tuple[int, ...]
    rules: dict[tuple[str, str, str], Group]
    lanes: dict[tuple[str, str], Group]
    undecided: dict[str, int]
    stopped: tuple[dict[str, int], ...]
    refused: tuple[dict[tuple[str, str], int], ...]
    refused_requests: tuple[int, ...]


class Comparison:
    """Takes recorded requests in the order of their start, then says what the two policy sets make of them.

    Memory is bounded by `most_conversations` (those heard of last are kept) and by the number of rules and lanes.
    """

    def __init__(
        self, old: PolicySet, new: PolicySet, catalog: Catalog, *, most_conversations: int = MOST_CONVERSATIONS
    ) -> None:
        refusals = Refusals(catalog)
        self._sides = (Side(old, catalog, refusals), Side(new, catalog, refusals))
        self._catalog = catalog
        self._soundness = Soundness()
        self._most = most_conversations
        # (old, new) of each conversation, and whether its prompt cache is one of an hour
        self._talks: OrderedDict[str, tuple[Talk, Talk, bool]] = OrderedDict()
        self._rules: dict[tuple[str, str, str], Group] = {}
        self._lanes: dict[tuple[str, str], Group] = {}
        self._undecided: dict[str, int] = {}
        self._refused: tuple[dict[tuple[str, str], int], ...] = ({}, {})
        self._stopped: tuple[dict[str, int], ...] = ({}, {})
        self._refused_requests = [0, 0]
        self._as_recorded = [0, 0]
        self._requests = self._unrouted = self._begun_before = self._forgotten = 0
        self._model_changes = self._caches_lost = self._caches_won = 0

    def add(self, seen: Recorded) -> None:
        """Compare one recorded request."""
        self._requests += 1
        record = seen.facts
        if record is None or not self._soundness.has_needed(record):
            if not seen.policy:
                self._unrouted += 1  # refused before any policy was asked: no policy changes that
                return
            record = None
        key = self._key(seen, "" if record is None else record["request_class"] or "")
        found = self._talks.get(key)
        if found is None:
            found = (_NEW, _NEW, False)
            self._begun_before += record is not None and record["conversation"] != "new"
        before_old, before_new, is_hour = found
        if seen.usage is not None and not seen.is_hit:
            tokens = seen.usage.tokens
            is_hour = tokens.cache_write_1h > 0 or (is_hour and not tokens.cache_write_5m)
        old = self._sides[0].forecast(seen, record, before_old.binding)
        new = self._sides[1].forecast(seen, record, before_new.binding)
        if isinstance(old, str) or isinstance(new, str):
            self._count(self._undecided, old if isinstance(old, str) else str(new))
        bill_old, after_old = self._step(seen, old, before_old, is_hour)
        if new == old and before_new == before_old:
            bill_new, after_new = bill_old, after_old
        else:
            bill_new, after_new = self._step(seen, new, before_new, is_hour)
        self._keep(key, after_old, after_new, is_hour)
        if isinstance(old, Forecast) and isinstance(new, Forecast):
            self._book(seen, old, new, bill_old, bill_new)

    def _step(self, seen: Recorded, forecast: Forecast | str, before: Talk, is_hour: bool) -> tuple[Bill, Talk]:
        """What a request comes to on one side, and the conversation after it."""
        if isinstance(forecast, str):
            return Bill(None, None, False, None, None), Talk(EARLIER_TURN, before.warm)
        bill = self._bill(seen, forecast, before, is_hour)
        if not forecast.model or not seen.is_answered:
            return bill, before
        binding = before.binding
        if forecast.stick != "none":
            binding = bound(
                binding if isinstance(binding, Binding) else None,
                lane=forecast.lane,
                model=forecast.model,
                usage=None if seen.is_hit else bill.usage,
                now_s=seen.started_at_s,
            )
        warm = before.warm
        if bill.usage is not None and not seen.is_hit:
            tokens = bill.usage.tokens
            if tokens.cache_read or tokens.cache_write_5m or tokens.cache_write_1h:
                until_s = seen.started_at_s + (_ONE_HOUR_S if is_hour else _FIVE_MINUTES_S)
                others = tuple(entry for entry in warm if entry[0] != forecast.model)
                warm = ((forecast.model, until_s), *others)[:_MOST_WARM]
        return bill, Talk(binding, warm)

    def _bill(self, seen: Recorded, forecast: Forecast, before: Talk, is_hour: bool) -> Bill:
        usage, catalog = seen.usage, self._catalog
        has_read = usage is not None and usage.tokens.cache_read > 0 and not seen.is_hit
        if not forecast.model and not forecast.is_recorded:
            return Bill(0, 0, False, None, None)
        if seen.is_hit:
            return Bill(seen.cost_pusd if forecast.is_recorded else 0, seen.baseline_pusd, False, None, usage)
        if forecast.is_recorded or same_model(forecast.model, seen.model_sent, catalog):
            return Bill(seen.cost_pusd, seen.baseline_pusd, False, True if has_read else None, usage)
        if usage is None:
            return Bill(None, seen.baseline_pusd, False, None, None)
        source = seen.model_answered if catalog.find(seen.model_answered) is not None else seen.model_sent
        is_warm = any(model == forecast.model and seen.started_at_s < until for model, until in before.warm)
        moved = moved_usage(usage, source, forecast.model, catalog, is_warm=is_warm, is_hour=is_hour)
        cost = catalog.baseline(moved, forecast.model, source)
        return Bill(cost, seen.baseline_pusd, True, is_warm if has_read else None, moved)

    def _book(self, seen: Recorded, old: Forecast, new: Forecast, bill_old: Bill, bill_new: Bill) -> None:
        is_other_model = old.model != new.model and not same_model(old.model, new.model, self._catalog)
        is_moved = old.lane != new.lane or is_other_model
        rule = (seen.policy, old.rule, new.rule)
        group = self._rules.get(rule)
        if group is None:
            group = self._rules[rule] = Group()
        group.add(bill_old, bill_new, is_moved)
        if is_moved:
            lanes = (old.lane, new.lane)
            if old.lane == new.lane:
                lanes = (f"{old.lane} ({old.model})", f"{new.lane} ({new.model})")
            moves = self._lanes.get(lanes)
            if moves is None:
                moves = self._lanes[lanes] = Group()
            moves.add(bill_old, bill_new, True)
            self._model_changes += is_other_model
            if bill_old.reads_cache is not None or bill_new.reads_cache is not None:
                self._caches_lost += bill_old.reads_cache is True and not bill_new.reads_cache
                self._caches_won += bill_new.reads_cache is True and not bill_old.reads_cache
        for side, forecast in ((0, old), (1, new)):
            self._as_recorded[side] += forecast.is_recorded
            if not forecast.model:
                self._count(self._stopped[side], forecast.lane)
            if forecast.refused:
                self._refused_requests[side] += 1
                for lane_and_reason in forecast.refused:
                    self._count_refusal(self._refused[side], lane_and_reason)

    def _key(self, seen: Recorded, request_class: str) -> str:
        """The conversation as the last of `affinity.binding.binding_keys` tells them apart, without the hashing.

        What tells the conversations of one session apart beyond that (their first turns) is not recorded.
        """
        return f"{seen.conversation}\n{seen.policy}\n{request_class}\n{seen.model_asked}"

    def _keep(self, key: str, old: Talk, new: Talk, is_hour: bool) -> None:
        talks = self._talks
        talks[key] = (old, new, is_hour)
        talks.move_to_end(key)
        if len(talks) > self._most:
            talks.popitem(last=False)
            self._forgotten += 1

    @staticmethod
    def _count(counts: dict[str, int], name: str) -> None:
        counts[name] = counts.get(name, 0) + 1

    @staticmethod
    def _count_refusal(counts: dict[tuple[str, str], int], refusal: tuple[str, str]) -> None:
        if refusal not in counts and len(counts) >= _MOST_REASONS:
            refusal = (refusal[0], "other reasons")
        counts[refusal] = counts.get(refusal, 0) + 1

    def tally(self) -> Tally:
        """All that was counted, for `merge` in another process; the conversations stay here."""
        numbers = (
            self._requests, self._unrouted, self._begun_before, self._forgotten, self._model_changes,
            self._caches_lost, self._caches_won,
        )  # fmt: skip
        return Tally(
            numbers, tuple(self._as_recorded), self._rules, self._lanes, self._undecided, self._stopped, self._refused,
            tuple(self._refused_requests),
        )  # fmt: skip

    def merge(self, other: Tally) -> None:
        """Add what was counted of other conversations, by a comparison of the same two policy sets."""
        requests, unrouted, begun_before, forgotten, changes, lost, won = other.numbers
        self._requests += requests
        self._unrouted += unrouted
        self._begun_before += begun_before
        self._forgotten += forgotten
        self._model_changes += changes
        self._caches_lost += lost
        self._caches_won += won
        for rule, group in other.rules.items():
            self._rules.setdefault(rule, Group()).merge(group)
        for lanes, group in other.lanes.items():
            self._lanes.setdefault(lanes, Group()).merge(group)
        for mine, more in zip((self._undecided, *self._stopped), (other.undecided, *other.stopped), strict=True):
            for name, count in more.items():
                mine[name] = mine.get(name, 0) + count
        for side in (0, 1):
            self._as_recorded[side] += other.as_recorded[side]
            self._refused_requests[side] += other.refused_requests[side]
            counts = self._refused[side]
            for refusal, count in other.refused[side].items():
                counts[refusal] = counts.get(refusal, 0) + count

    def result(self) -> dict[str, Any]:
        """Everything found, as JSON data; money as exact `Decimal` dollars, the largest groups first.

        Every request is compared, or undecided (counted under what is missing), or was never routed.
        """
        total = Group()
        for group in self._rules.values():
            total.merge(group)
        totals = total.shown()
        rules = [
            {"policy": policy, "old_rule": old, "new_rule": new, **group.shown()}
            for (policy, old, new), group in _largest_first(self._rules)
        ]
        lanes = [
            {"old_lane": old, "new_lane": new, **group.shown()} for (old, new), group in _largest_first(self._lanes)
        ]
        return {
            "requests": self._requests,
            "compared": total.requests,
            "not_routed": self._unrouted,
            "undecided": sum(self._undecided.values()),
            "undecided_for_lack_of": _sorted(self._undecided),
            "lane_changes": total.moved,
            "lane_change_share": round(total.moved / total.requests, 4) if total.requests else None,
            "model_changes": self._model_changes,
            "warm_caches_lost": self._caches_lost,
            "warm_caches_won": self._caches_won,
            "unknown_cost": total.unknown,
            "cost_change_usd": totals["cost_change_usd"],
            **{name: {**totals[name], **self._side(side, total)} for side, name in enumerate(("old", "new"))},
            "conversations_begun_before": self._begun_before,
            "conversations_forgotten": self._forgotten,
            "rules": rules,
            "lanes": lanes,
        }

    def _side(self, side: int, total: Group) -> dict[str, Any]:
        refusals = sorted(self._refused[side].items(), key=lambda item: (-item[1], item[0]))
        return {
            "revision": self._sides[side].policies.revision,
            "as_recorded": self._as_recorded[side],
            "forecast": total.requests - self._as_recorded[side],
            "not_sent": _sorted(self._stopped[side]),
            "swap_refused_requests": self._refused_requests[side],
            "swap_refusals": [{"lane": lane, "reason": reason, "requests": n} for (lane, reason), n in refusals],
        }


def _largest_first(groups: dict[Any, Group]) -> list[tuple[Any, Group]]:
    return sorted(groups.items(), key=lambda item: (-item[1].moved, -item[1].requests, item[0]))


def _sorted(counts: dict[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _usd(pusd: int) -> Decimal:
    return usd(pusd) or Decimal(0)

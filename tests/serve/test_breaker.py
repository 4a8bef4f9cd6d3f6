"""The breaker as a pure machine: when it opens, how long, and how a lane comes back."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.policy.written import Lane
from router.serve.breaker import FORGETS_S, MOST_ASKED, PROBES, RAMP_S, REFUSED, WEIGHTS, WINDOW_S, Breaker, Breakers


def breaker(jitter: float = 0.0) -> Breaker:
    return Breaker("haiku", "claude-haiku-5-5", lambda: jitter)


def ask(b: Breaker, now: float, outcome: str = "ok") -> bool:
    """One request through the breaker; whether it was let through."""
    leave = b.enter(now)
    if leave == REFUSED:
        return False
    b.ended(leave, WEIGHTS.get(outcome, 0.0), now)
    return True


def opened(now: float = 0.0, jitter: float = 0.0) -> Breaker:
    b = breaker(jitter)
    while b.state(now).state == "closed":
        assert ask(b, now, "overloaded")
    return b


@pytest.mark.parametrize(("outcome", "needed"), [("overloaded", 5), ("connect_failed", 5), ("error", 5), ("cut", 5),
                                                 ("unavailable", 5), ("broken", 5), ("timeout", 3)])  # fmt: skip
def test_failures_open_it_and_timeouts_sooner(outcome, needed):
    """Each failure of the lane counts; one that held a client for its whole limit counts double."""
    b = breaker()
    for _ in range(needed):
        assert b.state(0).state == "closed"
        ask(b, 0, outcome)
    assert b.state(0).state == "open"
    assert not ask(b, 0.5)


@pytest.mark.parametrize("outcome", ["ok", "rate_limited", "rejected"])
def test_answers_do_not_open_it(outcome):
    """A 429 or a 4xx shows that the lane is alive."""
    b = breaker()
    for _ in range(1000):
        assert ask(b, 0, outcome)
    assert b.state(0).state == "closed"


def test_a_share_of_failures_below_half_does_not_open_it():
    """One bad request in three is the upstream's everyday life; one in two is not."""
    b = breaker()
    for number in range(300):
        ask(b, number * 0.01, "overloaded" if number % 3 == 0 else "ok")
    assert b.state(3).state == "closed"
    for number in range(40):
        ask(b, 4 + number * 0.01, "overloaded" if number % 2 == 0 else "ok")
    assert b.state(5).opened == 1


def test_failures_of_long_ago_are_forgotten():
    """Four failures an hour are no outage."""
    b = breaker()
    for number in range(50):
        ask(b, number * (WINDOW_S + 1) / 4, "overloaded")
    assert b.state(1e6).state == "closed"


@pytest.mark.parametrize(("minutes_ago", "needed"), [(0, 10), (5, 5)])
def test_what_went_well_counts_for_half_a_minute(minutes_ago, needed):
    """Twenty answers just now: half of the last twenty must fail. Those of five minutes ago weigh nothing."""
    b = breaker()
    for _ in range(30):
        leave = b.enter(0.0)
        assert b.went_well(leave)
    failures = 0
    while b.state(minutes_ago * 60).state == "closed":
        ask(b, minutes_ago * 60, "overloaded")
        failures += 1
    assert failures == needed


def test_it_opens_for_longer_each_time_and_never_for_long():
    """0.75 s to 1 s at first, then twice as long, 20 s at the most; by chance less, so that not all come at once."""
    for jitter, least in ((0.0, 0.75), (0.999, 0.99)):
        b, now, waits = opened(jitter=jitter), 0.0, []
        for _ in range(8):
            wait = b.state(now).open_for_s
            waits.append(wait)
            now += wait
            assert ask(b, now, "overloaded"), "after that time a probe goes through"
        assert waits[0] >= least
        assert all(later >= earlier for earlier, later in pairwise(waits))
        assert 15 <= waits[-1] <= 20


def test_the_slow_start_is_one_at_a_time_then_a_share_then_all():
    """While probes are under way nobody else goes; what goes through grows; then it is closed."""
    b = opened()
    now = 1.0
    for _ in range(PROBES):
        leave = b.enter(now)
        assert leave != REFUSED
        assert b.enter(now) == REFUSED, "one at a time"
        b.ended(leave, 0.0, now)
    through = []
    for step in range(60):  # 100 requests every tenth of a second, each under way for a moment
        now = 1.0 + step / 10
        leaves = [b.enter(now) for _ in range(100)]
        through.append(sum(leave != REFUSED for leave in leaves))
        for leave in leaves:
            if leave != REFUSED:
                b.ended(leave, 0.0, now)
    assert through[0] <= 15
    assert 30 <= through[25] <= 70
    assert through[-1] == 100
    assert b.state(now).state == "closed"
    assert now >= 1.0 + RAMP_S


def probes(b: Breaker, start: float, seconds: int) -> list[float]:
    """When somebody is let through, of four who ask each second, while nobody hears anything."""
    times = [start + tick / 4 for tick in range(seconds * 4)]
    return [now - start for now in times if b.enter(now) != REFUSED]


def test_probes_that_do_not_come_back_grow_rarer():
    """Where an answer takes a minute another probe goes, and where none comes each waits longer for the next."""
    b = opened()
    assert probes(b, 1.0, 100) == [0, 2, 6, 14, 30, 50, 70, 90]


def test_an_answer_makes_probes_frequent_again():
    """Probes that hang on from before do not make the lane wait for 20 seconds between those that are answered."""
    b = opened()
    leave = b.enter(1.0)
    probes(b, 1.25, 40)
    b.ended(leave, 0.0, 50.0)
    assert ask(b, 52.0)
    assert ask(b, 54.0)
    assert b.state(54.0).state == "half"
    for now in range(56, 70):
        ask(b, now)
    assert b.state(70.0).state == "closed"


def test_clients_that_leave_one_after_another_are_no_reason_to_send_more():
    """The place of the first is free at once; of the next ones no sooner than if they had waited."""
    b = opened()
    gone = []
    for tick in range(4 * 100):
        leave = b.enter(1.0 + tick / 4)
        if leave != REFUSED:
            gone.append(tick / 4)
            b.ended(leave, None, 1.125 + tick / 4)
    assert gone == [0, 0.25, 4.25, 12.25, 28.25, 48.25, 68.25, 88.25]


def test_a_lane_that_hangs_gets_fewer_clients_each_time_it_opens_again():
    """A timeout ends the slow start; the next one begins with the distance that the last one had come to."""
    b = opened()
    first = probes(b, 1.0, 30)
    b.ended(b._epoch, WEIGHTS["timeout"], 31.0)
    assert b.state(31.0).state == "open"
    assert (first, probes(b, 60.0, 30)) == ([0, 2, 6, 14], [0, 20])


def test_a_failed_probe_opens_it_again_at_once():
    """One probe, not five."""
    b = opened()
    assert ask(b, 1.0, "timeout")
    assert b.state(1.0).state == "open"
    assert b.state(1.0).opened == 2


def test_one_failure_in_the_ramp_is_forgiven_and_a_quarter_is_not():
    """An upstream that is back has its share of bad luck as before."""
    b = opened()
    for _ in range(6):
        ask(b, 1.0)
    ask(b, 1.0, "overloaded")
    assert b.state(1.0).state == "half"
    ask(b, 1.0, "overloaded")
    assert b.state(1.0).state == "open"


def test_a_client_that_leaves_frees_its_place():
    """A probe whose client went says nothing, and the next one goes."""
    b = opened()
    leave = b.enter(1.0)
    assert b.enter(1.0) == REFUSED
    b.ended(leave, None, 1.0)
    assert b.state(1.0).state == "half"
    assert b.enter(1.0) != REFUSED


def test_the_last_lane_that_goes_well_ends_the_wait():
    """A request that had no other lane shows that this one is alive: the slow start begins."""
    b = opened()
    leave = b.force()
    b.ended(leave, 1.0, 0.1)
    assert b.state(0.1).state == "open"
    leave = b.force()
    b.ended(leave, 0.0, 0.2)
    assert b.state(0.2).state == "half"


def test_what_began_before_a_change_says_nothing_after_it():
    """Requests of before the outage that end late, well or badly, neither close nor open anything."""
    b = breaker()
    early = [b.enter(0.0) for _ in range(3)]
    while b.state(0).state == "closed":
        ask(b, 0.0, "broken")
    b.ended(early[0], 0.0, 0.1)
    assert b.state(0.1).state == "open"
    assert ask(b, 1.0)
    b.ended(early[1], 2.0, 1.1)
    b.failed_late(early[2], 2.0, 1.1)
    assert b.state(1.1).state == "half"


def test_a_stream_that_fails_late_counts():
    """The head was well, and the body was not: an outage all the same."""
    b = breaker()
    for _ in range(5):
        leave = b.enter(0.0)
        b.ended(leave, 0.0, 0.0)
        b.failed_late(leave, 1.0, 0.0)
    assert b.state(0.0).state == "open"


def test_a_flap_of_sixty_seconds_is_over_within_thirty():
    """The lane is down for 60 s at 50 requests a second: few probes, all else passed over, back soon after (F27)."""
    chance = random.Random(7)
    b = Breaker("haiku", "m", chance.random)
    sent_down = sent_total = 0
    back_at = None
    for step in range(50 * 120):
        now = step / 50
        is_down = 5 <= now < 65
        if ask(b, now, "connect_failed" if is_down else "ok"):
            sent_down += is_down
            sent_total += 1
        if now > 65 and back_at is None and b.state(now).state == "closed":
            back_at = now
    assert back_at is not None
    assert back_at <= 65 + 30
    assert sent_down <= 30, "the probes of a minute"


@given(
    st.lists(
        st.tuples(st.sampled_from(["ask", "fail", "late", "force", "gone"]), st.floats(0, 5), st.integers(0, 5)),
        max_size=150,
    )
)
def test_it_never_shuts_for_good(steps):
    """Whatever happened, twenty seconds later a request goes through, and with answers it is closed again."""
    b, now = breaker(0.5), 0.0
    under_way: list[int] = []
    for step, seconds, which in steps:
        now += seconds
        if step == "ask":
            leave = b.enter(now)
            if leave != REFUSED:
                under_way.append(leave)
        elif step == "force":
            under_way.append(b.force())
        elif under_way:
            leave = under_way.pop(which % len(under_way))
            if step == "late":
                b.ended(leave, 0.0, now)
                b.failed_late(leave, 1.0, now)
            else:
                b.ended(leave, 1.0 if step == "fail" else None, now)
    now += 21
    assert ask(b, now)
    for _ in range(40):
        now += 2.5
        ask(b, now)
    assert b.state(now).state == "closed"


def test_each_lane_has_its_own_and_their_number_is_bounded():
    """`as-asked` is watched per model asked for; names that a client invents push out neither lanes nor what is ill."""
    told = []
    breakers = Breakers(lambda: 0.0, lambda: 0.0, lambda *change: told.append(change))
    asked, haiku = Lane("as-asked", None), Lane("haiku", "claude-haiku-5-5")
    first = breakers.of(asked, "claude-opus-5-5")
    assert first is breakers.of(asked, "claude-opus-5-5")
    assert first is not breakers.of(asked, "claude-sonnet-5-5")
    assert first is not None
    for _ in range(5):
        ask(first, 0.0, "error")
    for number in range(2 * MOST_ASKED):
        assert breakers.of(asked, f"model-{number}") is not None
    assert breakers.of(asked, "claude-opus-5-5") is first
    assert breakers.of(haiku, "claude-haiku-5-5") is not None
    assert len(breakers.states()) == MOST_ASKED + 1
    assert told == [("as-asked", "claude-opus-5-5", "closed", "open")]
    assert [each.model for each in breakers.states() if each.state == "open"] == ["claude-opus-5-5"]
    for number in range(MOST_ASKED):
        ill = breakers.of(asked, f"ill-{number}")
        if ill is not None:
            ask(ill, 0.0, "error")
    assert breakers.of(asked, "one-more") is not None, "the one that was asked for longest ago makes room"
    assert len(breakers.states()) == MOST_ASKED + 1


@pytest.mark.parametrize("failures", [1, 5])
def test_an_outage_is_forgotten_when_names_are_new(failures):
    """A hundred models failed once, or until they opened, and were never asked again: other names are watched."""
    now = [0.0]
    breakers = Breakers(lambda: now[0], lambda: 0.0)
    asked = Lane("as-asked", None)
    for number in range(MOST_ASKED):
        ill = breakers.of(asked, f"ill-{number}")
        assert ill is not None
        for _ in range(failures):
            ask(ill, 0.0, "connect_failed")
    now[0] = FORGETS_S + 1
    used = breakers.of(asked, "ill-0")
    assert used is not None
    ask(used, now[0])
    for number in range(MOST_ASKED - 1):
        now[0] += 0.01
        ask(breakers.of(asked, f"new-{number}"), now[0])
    assert breakers.of(asked, "ill-0") is used, "what is asked for stays"
    assert not [each for each in breakers.states() if each.failures and each.model != "ill-0"]


def test_what_is_shown_is_numbers_and_words():
    """For the metrics and the status document."""
    b = opened()
    shown = b.state(0.3).shown()
    assert shown == {"lane": "haiku", "model": "claude-haiku-5-5", "state": "open", "open_for_s": 0.5, "opened": 1,
                     "skipped": 0, "failures": 5}  # fmt: skip
    assert b.state(0.3).figures() == {"state": 2, "opened": 1, "skipped": 0, "failures": 5}

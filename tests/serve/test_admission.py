"""Who is let in: bounds of requests, bodies, tenants and keys, and equal shares of what is left."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.serve.admission import ANNOUNCED_MAX, REASONS, SMALL_BODY, Admission, Bounds, Ticket
from router.serve.brake import Brake

LARGE = 1024 * 1024


def admission(**bounds: int) -> Admission:
    return Admission(Bounds(**bounds), Brake(inf))


def let_in(gate: Admission, tenant: str, size: int = 0, **key) -> Ticket:
    ticket = gate.enter(tenant, size, 0.0, **key)
    assert isinstance(ticket, Ticket), ticket
    return ticket


def fill(gate: Admission, tenant: str, size: int = 0) -> list[Ticket]:
    """As many of the tenant's requests as are let in."""
    tickets = []
    while isinstance(ticket := gate.enter(tenant, size, 0.0), Ticket):
        tickets.append(ticket)
    return tickets


def test_a_tenant_alone_gets_four_fifths_and_leaves_room_for_another():
    """There is never a moment in which a newcomer finds the house full because of one tenant (S22)."""
    gate = admission(max_working=100)
    assert len(fill(gate, "noisy")) == 80
    assert len(fill(gate, "quiet")) > 10
    assert gate.turned_away == {("noisy", "working"): 1, ("quiet", "working"): 1}


def test_tenants_that_all_want_more_end_up_with_equal_shares():
    """Whoever came first: as places fall free, they go to those who have fewer."""
    gate = admission(max_working=90)
    held = {"first": fill(gate, "first"), "second": [], "third": []}
    for _ in range(200):
        gate.leave(held["first"].pop()) if len(held["first"]) > 1 else None
        for name in ("first", "second", "third"):
            ticket = gate.enter(name, 0, 0.0)
            if isinstance(ticket, Ticket):
                held[name].append(ticket)
    shares = [len(tickets) for tickets in held.values()]
    assert sum(shares) <= 90
    assert max(shares) - min(shares) <= 3, shares


def test_the_process_is_full_at_its_bound_and_has_room_again():
    """Many tenants together reach the bound exactly; a place that was given back is taken by the next."""
    gate = admission(max_working=10)
    tickets = [ticket for number in range(20) for ticket in fill(gate, f"t{number}")]
    assert gate.working == len(tickets) == 10
    assert gate.enter("late", 0, 0.0) == "working"
    gate.leave(tickets.pop())
    assert isinstance(gate.enter("late", 0, 0.0), Ticket)


def test_an_open_stream_is_no_work():
    """What is being relayed takes no place of those at work; it ends without giving one back twice."""
    gate = admission(max_working=10)
    streams = []
    for _ in range(500):
        ticket = let_in(gate, "a")
        gate.begun(ticket)
        gate.begun(ticket)
        streams.append(ticket)
    assert gate.figures()["working"] == 0
    assert gate.figures()["streaming"] == 500
    for ticket in streams:
        gate.leave(ticket)
    assert gate.figures() == {"working": 0, "streaming": 0, "body_bytes": 0, "tenants": 1, "is_braking": 0}


def test_a_tenants_own_number_counts_its_streams():
    """`max_concurrent_per_tenant` is what is under way in all; another tenant is not concerned."""
    gate = admission(max_of_tenant=3)
    for _ in range(3):
        gate.begun(let_in(gate, "a"))
    assert gate.enter("a", 0, 0.0) == "tenant"
    assert isinstance(gate.enter("b", 0, 0.0), Ticket)


def test_a_key_has_its_own_number_whatever_its_tenant_may():
    """Two keys of one tenant: the one with a limit meets it, the other goes on; what ends makes room."""
    gate = admission()
    first = let_in(gate, "team", key="batch", max_of_key=1)
    assert gate.enter("team", 0, 0.0, key="batch", max_of_key=1) == "key"
    let_in(gate, "team", key="chat")
    gate.leave(first)
    let_in(gate, "team", key="batch", max_of_key=1)


def test_bodies_are_bounded_together_and_small_ones_always_pass():
    """Large bodies up to the bound; a small one is let in behind it, for the number of requests is bounded anyway."""
    gate = admission(max_body_bytes=10 * LARGE)
    tickets = fill(gate, "a", LARGE)
    assert 8 <= len(tickets) <= 9
    assert gate.enter("a", LARGE, 0.0) == "bodies"
    assert isinstance(gate.enter("b", LARGE, 0.0), Ticket)
    assert isinstance(gate.enter("a", SMALL_BODY, 0.0), Ticket)


def test_a_body_over_the_whole_bound_is_let_in_alone():
    """An upload of half a gigabyte is not refused for ever: it waits until no other large body is held, and no large
    one is let in beside it."""
    gate = admission(max_body_bytes=LARGE)
    let_in(gate, "a", SMALL_BODY)
    large = let_in(gate, "a", 2 * SMALL_BODY)
    assert gate.enter("a", 5 * LARGE, 0.0) == "bodies"
    gate.leave(large)
    alone = let_in(gate, "a", 5 * LARGE)
    assert gate.enter("b", 2 * SMALL_BODY, 0.0) == "bodies"
    gate.leave(alone)
    let_in(gate, "b", 2 * SMALL_BODY)


def test_two_large_bodies_of_one_tenant_leave_room_for_everybody_else():
    """A body is judged with its own size: half of the bound, twice, would be all of it (S22)."""
    gate = admission(max_body_bytes=100 * LARGE)
    first = let_in(gate, "noisy", 50 * LARGE)
    assert gate.grow(first, 50 * LARGE - ANNOUNCED_MAX) == ""
    assert gate.enter("noisy", 49 * LARGE, 0.0) == "bodies"
    assert isinstance(gate.enter("quiet", 10 * LARGE, 0.0), Ticket)


def test_what_is_only_announced_holds_little():
    """A length in a header is no memory: it holds a megabyte, and the rest of the body counts as it comes."""
    gate = admission(max_body_bytes=100 * LARGE)
    tickets = [let_in(gate, "noisy", 40 * LARGE) for _ in range(20)]
    assert gate.body_bytes == 20 * ANNOUNCED_MAX
    let_in(gate, "quiet", 60 * LARGE)
    while not (said := gate.grow(tickets[0], LARGE)):
        pass
    assert said == "bodies"
    assert gate.body_bytes <= 81 * LARGE


def test_a_refused_body_is_let_go_before_its_client_has_heard_of_it():
    """Neither its bytes nor its place are held while the answer goes out; nothing is given back twice."""
    gate = admission(max_working=1, max_body_bytes=LARGE)
    ticket = let_in(gate, "a", LARGE)
    gate.drop(ticket)
    assert (gate.working, gate.under_way, gate.body_bytes) == (0, 1, 0)
    other = let_in(gate, "b", LARGE)
    gate.drop(ticket)
    gate.leave(ticket)
    gate.leave(other)
    assert (gate.working, gate.under_way, gate.body_bytes) == (0, 0, 0)


def test_a_body_of_unknown_length_is_counted_as_it_grows():
    """Chunk by chunk; what finds no room is refused, and all of it is given back."""
    gate = admission(max_body_bytes=LARGE)
    ticket = let_in(gate, "a")
    other = let_in(gate, "b", LARGE // 2)
    grown = 0
    while not gate.grow(ticket, SMALL_BODY):
        grown += SMALL_BODY
    assert 0 < grown <= LARGE
    assert gate.turned_away == {("a", "bodies"): 1}
    gate.leave(ticket)
    gate.leave(other)
    assert gate.body_bytes == 0


def test_short_memory_refuses_large_bodies_then_everything():
    """`relieve` in its three states. Even in the last, a small request of each of a few tenants is at work."""
    gate = admission()
    gate.relieve(gate.bounds.large_body)
    assert gate.enter("a", LARGE, 0.0) == "memory"
    gate.leave(let_in(gate, "a", 1000))
    gate.relieve(-1)
    assert gate.enter("a", SMALL_BODY + 1, 0.0) == "memory"
    few = [let_in(gate, f"t{number}", SMALL_BODY) for number in range(7)]
    last = let_in(gate, "a")
    assert gate.enter("b", 0, 0.0) == "memory"
    gate.begun(few.pop())
    assert gate.enter("a", 0, 0.0) == "memory"
    gate.leave(last)
    let_in(gate, "a")
    gate.relieve(gate.bounds.large_body)
    growing = let_in(gate, "a")  # of unknown length
    assert gate.grow(growing, 200 * 1024) == ""
    assert gate.grow(growing, 200 * 1024) == "memory"
    gate.relieve(None)
    let_in(gate, "a", LARGE)


def test_what_is_counted_per_tenant_has_an_end():
    """A client that makes up a credential for each request does not make the counts grow without limit (R7)."""
    gate = admission(max_working=1)
    let_in(gate, "busy")
    for number in range(3_000):
        assert gate.enter(f"made-up-{number}", 0, 0.0) == "working"
    assert len(gate.turned_away) <= 1_001
    assert sum(gate.turned_away.values()) == 3_000
    for _ in range(3):
        gate.look(0.0, 0.0, 0.1, 0.0)
    for number in range(30_000):
        gate.enter(f"another-{number}", 0, 0.0)
    assert gate.figures()["tenants"] <= 10_000
    gate.look(0.0, 0.0, 0.1, 1.0)
    gate.look(0.0, 0.0, 0.1, 30.0)
    assert gate.figures()["tenants"] == 10_000
    gate.enter("another-7", 0, 50.0)
    gate.look(0.0, 0.0, 0.1, 50.0)
    gate.look(0.0, 0.0, 0.1, 70.0)
    assert gate.figures()["tenants"] == 2_500
    assert {"busy", "another-7"} <= gate._accounts.keys()


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["enter", "begun", "leave", "grow", "drop"]),
        st.integers(0, 4),
        st.sampled_from([0, 100, 10**5, 10**7]),
    ),
    max_size=80,
)


@given(STEPS)
def test_the_books_balance_whatever_happens(steps):
    """No order of events lets a bound be passed, and when all have left nothing is counted (R7)."""
    bounds = Bounds(max_working=7, max_body_bytes=10**7, max_of_tenant=5)
    gate = Admission(bounds, Brake(inf))
    tickets: list[Ticket] = []
    for what, who, size in steps:
        if what == "enter":
            ticket = gate.enter(f"t{who % 3}", size, 0.0, key=f"k{who}", max_of_key=2 if who > 2 else None)
            if isinstance(ticket, Ticket):
                tickets.append(ticket)
            else:
                assert ticket in REASONS
        elif tickets:
            ticket = tickets[who % len(tickets)]
            if what == "begun":
                gate.begun(ticket)
            elif what == "grow":
                gate.grow(ticket, size)
            elif what == "drop":
                gate.drop(ticket)
            else:
                tickets.remove(ticket)
                gate.leave(ticket)
        assert gate.working <= bounds.max_working
        large = [ticket for ticket in tickets if ticket.body_bytes > SMALL_BODY]
        small = sum(ticket.body_bytes for ticket in tickets if ticket.body_bytes <= SMALL_BODY)
        assert len(large) <= 1 or gate.body_bytes - small <= bounds.max_body_bytes
    for ticket in tickets:
        gate.leave(ticket)
    assert (gate.working, gate.under_way, gate.body_bytes, gate._large) == (0, 0, 0, 0)


def brake(gate: Admission, lag_s: float, *, busy: float = 1.0, at_s: float = 0.0) -> bool:
    """One window of a tenth of a second."""
    return gate.look(lag_s, busy, 0.1, at_s)


def pressed(target_s: float = 0.01) -> Admission:
    """A gate whose brake has just gone on, at 10 s, with `noisy` at 1,000 requests a second and `quiet` at 20."""
    gate = Admission(Bounds(), Brake(target_s))
    changed = False
    while not changed:
        for name, count in (("noisy", 100), ("quiet", 2)):
            for _ in range(count):
                gate.leave(let_in(gate, name))
        changed = brake(gate, 0.05, at_s=10.0)
    assert gate.brake.is_on
    return gate


def offer(gate: Admission, rates: dict[str, int], at_s: float) -> dict[str, int]:
    """A tenth of a second of arrivals, evenly spread → how many of each were let in."""
    taken = dict.fromkeys(rates, 0)
    arrivals = sorted((number / rate, name) for name, rate in rates.items() for number in range(rate // 10))
    for after_s, name in arrivals:
        ticket = gate.enter(name, 0, at_s + after_s)
        if isinstance(ticket, Ticket):
            taken[name] += 1
            gate.leave(ticket)
    return taken


def test_one_late_window_brakes_nobody():
    """A collection of garbage, a neighbour on the core: the lag has to stay."""
    gate = Admission(Bounds(), Brake(0.01))
    for lag_s in (0.5, 0.5, 0.0, 0.5, 0.5, 0.0):
        for _ in range(50):
            gate.leave(let_in(gate, "a"))
        assert not brake(gate, lag_s)
    assert not gate.brake.is_on


@pytest.mark.parametrize(("busy", "requests"), [(0.05, 100), (1.0, 1)])
def test_a_loop_that_is_late_through_no_work_of_its_own_brakes_nobody(busy, requests):
    """Cores taken by others, or hardly a request: turning clients away would not help."""
    gate = Admission(Bounds(), Brake(0.01))
    for _ in range(50):
        for _ in range(requests):
            gate.leave(let_in(gate, "a"))
        assert not brake(gate, 0.2, busy=busy)


def test_under_the_brake_who_uses_most_is_cut_and_who_uses_little_notices_nothing():
    """Fair by construction: one level for all (S22)."""
    gate = pressed()
    taken = {"noisy": 0, "quiet": 0}
    for window in range(10):
        at_s = 10.0 + window / 10
        for name, count in offer(gate, {"noisy": 1_000, "quiet": 20}, at_s).items():
            taken[name] += count
        brake(gate, 0.03, at_s=at_s)
    assert taken["quiet"] == 20
    assert taken["noisy"] < 600
    assert {name for name, _ in gate.turned_away} == {"noisy"}


def test_the_level_finds_what_the_machine_can_do():
    """A machine with 400 requests a second in it, offered ten times that: nearly all of the 400 is served (F54)."""
    gate = pressed()
    served, behind = [], 0.0
    for window in range(150):
        at_s = 10.0 + window / 10
        let = sum(offer(gate, {"a": 3_000, "b": 1_000}, at_s).values())
        behind = max(0.0, behind + let - 40)  # requests that wait for the machine
        served.append(let)
        brake(gate, behind / 400, at_s=at_s)
    late = served[50:]
    assert 0.9 * 40 <= sum(late) / len(late) <= 1.05 * 40
    assert behind / 400 < 0.1


def test_the_brake_lets_go_when_the_load_has_gone():
    """Within two seconds of calm nobody is held to a share, whatever it was before (R8)."""
    gate = pressed()
    for window in range(30):
        offer(gate, {"noisy": 4_000}, 10.0 + window / 10)
        brake(gate, 0.2, at_s=10.0 + window / 10)
    at_s, windows = 13.0, 0
    while gate.brake.is_on:
        windows += 1
        assert windows <= 20
        offer(gate, {"noisy": 10}, at_s := at_s + 0.1)
        brake(gate, 0.0, at_s=at_s)
    assert offer(gate, {"noisy": 4_000}, at_s) == {"noisy": 400}


def test_some_are_always_let_in():
    """The loop is slow with something else, and the level falls and falls: a few are served all the same."""
    gate = pressed()
    let = []
    for window in range(200):
        at_s = 10.0 + window / 10
        let.append(sum(offer(gate, {"a": 500}, at_s).values()))
        brake(gate, 0.2, at_s=at_s)
    assert 2 <= sum(let[100:]) / 100 <= 10


def test_made_up_credentials_share_one_share():
    """A new name with each request is a newcomer each time, and all newcomers together are one tenant."""
    gate = pressed()
    let = 0
    for window in range(10):
        at_s = 10.0 + window / 10
        for number in range(200):
            ticket = gate.enter(f"new-{window}-{number}", 0, at_s + number / 2_000)
            if isinstance(ticket, Ticket):
                let += 1
                gate.leave(ticket)
        assert offer(gate, {"quiet": 20}, at_s) == {"quiet": 2}
        brake(gate, 0.05, at_s=at_s)
    assert 0 < let < 1_000


def test_made_up_credentials_do_not_make_a_stranger_of_a_known_tenant():
    """However many names come and go while the brake is on, whoever was there before keeps a share of its own."""
    gate = pressed()
    served = 0
    for window in range(300):
        at_s = 10.0 + window / 10
        for number in range(100):
            ticket = gate.enter(f"new-{window}-{number}", 0, at_s + number / 2_000)
            if isinstance(ticket, Ticket):
                gate.leave(ticket)
        if window % 10 == 0:
            served += offer(gate, {"quiet": 10}, at_s)["quiet"]
        brake(gate, 0.012, at_s=at_s)
    assert served == 30
    assert gate.figures()["tenants"] == 2


def test_a_large_body_costs_more_of_the_share():
    """Reading a megabyte is the work of many small requests, and is counted so."""
    small, large = pressed(), pressed()
    let = {"small": 0, "large": 0}
    for name, gate, size in (("small", small, 100), ("large", large, LARGE)):
        for number in range(1_000):
            ticket = gate.enter("noisy", size, 10.0 + number / 1_000)
            if isinstance(ticket, Ticket):
                let[name] += 1
                gate.leave(ticket)
    assert let["large"] * 20 < let["small"]

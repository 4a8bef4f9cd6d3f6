"""The trace page in a real browser: filters by status and time, two requests side by side, the month, words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from kit.page import FACTS, Shown, a_browser, a_request, a_tab, shown

from router.trace.capture import Capture
from router.trace.captured import Content

TOKEN = "a long admin token"
NASTY = "<img src=x onerror=globalThis.pwned=1>\u202e'\""
SLOW, OTHER, LIMITED = 5, 8, 9  # requests of the store that are told apart below


def expect(part: Any) -> Any:
    """Playwright's own, imported late: where it is not installed, these tests are skipped and not broken."""
    from playwright.sync_api import expect

    return expect(part)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with a_browser() as browser:
        yield browser


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    with a_tab(browser) as page:
        yield page


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    """Twelve requests of the last six hours; tests do not add to it."""
    odd: dict[int, dict[str, Any]] = {
        SLOW: {"duration_s": 7.25, "status": 529, "outcome": "upstream_error", "error_type": "overloaded_error"},
        OTHER: {"facts": {**FACTS, "language": NASTY, NASTY: 1}, "why": ("rule `hard`: matched", NASTY)},
        LIMITED: {"status": 429, "outcome": "upstream_error", "batch": "msgbatch_1"},
    }
    with shown(tmp_path_factory.mktemp("filled")) as filled:
        filled.write(*(a_request(n, ago_s=1_800.0 * n, **odd.get(n, {})) for n in reversed(range(12))))
        yield filled


def trace_id(number: int) -> str:
    return f"{number + 1:032x}"


def row(page: Any, number: int) -> Any:
    return page.locator(f"#rows tr[data-id='{trace_id(number)}']")


def is_list(page: Any, *numbers: int) -> None:
    """Wait until the list has these requests and no other."""
    expect(page.locator("#rows tr")).to_have_count(len(numbers))
    for number in numbers:
        expect(row(page, number)).to_have_count(1)


def filter_by(page: Any, words: str) -> None:
    page.keyboard.press("/")
    page.keyboard.type(words)
    page.keyboard.press("Enter")


def test_what_failed_or_took_long_is_found(filled: Shown, page: Any) -> None:
    """By status, a class of them, the time it took and the batch; each is in the address, and can be taken away."""
    page.goto(filled.url)
    filter_by(page, "status:5xx")
    page.wait_for_url("**/?status=5xx")
    is_list(page, SLOW)
    page.locator(".chip", has_text="status: 5xx").click()
    filter_by(page, "min_duration:7s")
    is_list(page, SLOW)
    page.locator(".chip", has_text="min_duration: 7s").click()
    filter_by(page, "batch:msgbatch_1 status:429")
    is_list(page, LIMITED)
    expect(page.locator("#aside-note")).to_contain_text("batch, status")


def test_a_request_leads_to_those_of_its_status_and_to_slower_ones(filled: Shown, page: Any) -> None:
    """A click on the status, or on the time it took, filters by it; the request itself is among what is found."""
    page.goto(f"{filled.url}/t/{trace_id(SLOW)}")
    page.get_by_role("button", name="529", exact=True).click()
    page.wait_for_url("**/?status=529")
    is_list(page, SLOW)
    page.goto(f"{filled.url}/t/{trace_id(SLOW)}")
    page.get_by_role("button", name="7.25 s").click()
    page.wait_for_url("**/?min_duration=7.25s")
    is_list(page, SLOW)


def test_two_requests_are_compared_by_keyboard(filled: Shown, page: Any) -> None:
    """c marks a row, c on another shows both: what differs first, in the order in which one asks; the rest folded."""
    page.goto(f"{filled.url}/?rule=hard")
    is_list(page, 2, SLOW, OTHER, 11)
    for key in ("j", "j", "c"):
        page.keyboard.press(key)
    expect(row(page, SLOW)).to_have_class("at marked")
    expect(page.get_by_role("status")).to_contain_text("To compare with")
    for key in ("j", "c"):
        page.keyboard.press(key)
    page.wait_for_url(f"**/t/{trace_id(SLOW)}?rule=hard&with={trace_id(OTHER)}")
    table = page.get_by_role("table", name="What differs")
    table.wait_for()
    names = table.locator("tbody tr").evaluate_all("(rows) => rows.map((row) => row.dataset.field)")
    assert names[:4] == ["outcome", "status", "error_type", "why"]
    assert names[-3:] == ["started_at", "trace_id", "request_id"]
    assert "model_sent" not in names
    assert table.locator("[data-field=duration_s] td").all_inner_texts() == ["7.25 s", "1.20 s −83 %"]
    page.get_by_text("are the same").click()
    assert page.locator(".same [data-field=model_sent] td").inner_text() == "claude-sonnet-5-5"
    expect(page.locator("#marked")).to_be_hidden()
    page.keyboard.press("Escape")
    page.wait_for_url("**/?rule=hard")


def test_a_comparison_is_an_address_and_can_be_turned_round(filled: Shown, page: Any) -> None:
    """It can be sent to somebody, going back works, and one of the two can be opened by itself."""
    one, other = trace_id(0), "req_000002"
    page.goto(f"{filled.url}/t/{one}?with={other}")
    models = page.locator(".pair [data-field=model_sent] td")
    expect(models).to_have_text(["claude-haiku-5-5", "claude-sonnet-5-5"])
    page.get_by_role("button", name="Swap").click()
    page.wait_for_url(f"**/t/{other}?with={one}")
    expect(models).to_have_text(["claude-sonnet-5-5", "claude-haiku-5-5"])
    page.go_back()
    expect(models).to_have_text(["claude-haiku-5-5", "claude-sonnet-5-5"])
    page.locator(".pair thead button").nth(1).click()
    page.wait_for_url(f"**/t/{other}")
    page.get_by_text("Why this route").wait_for()
    assert "with=" not in (row(page, 1).locator("a").get_attribute("href") or "")


def test_the_mark_is_let_go_by_the_same_key_and_by_its_button(filled: Shown, page: Any) -> None:
    """Nothing stays marked by accident."""
    page.goto(filled.url)
    row(page, 0).wait_for()
    page.keyboard.press("j")
    for undo in (lambda: page.keyboard.press("c"), page.get_by_role("button", name="Do not compare").click):
        page.keyboard.press("c")
        expect(page.locator("tr.marked")).to_have_count(1)
        undo()
        expect(page.locator("tr.marked")).to_have_count(0)
        expect(page.locator("#marked")).to_be_hidden()


def test_requests_that_share_a_trace_are_told_apart(page: Any, tmp_path: Path) -> None:
    """A caller may continue one trace in many requests: then each is named by its own id."""
    with shown(tmp_path, tab=page) as twins:
        twins.write(*(a_request(n, ago_s=n, trace_id="a" * 32) for n in (1, 0)))
        page.goto(twins.url)
        expect(page.locator("#rows tr")).to_have_count(2)
        for key in ("j", "c", "j", "c"):
            page.keyboard.press(key)
            if key == "j":
                expect(page.locator("tr.at:focus")).to_have_count(1)
        page.wait_for_url("**/t/req_000000?with=req_000001")
        expect(page.locator(".pair [data-field=key] td")).to_have_text(["shop", "search"])
        page.locator("#rows tr td.took").nth(1).dispatch_event("click")
        page.wait_for_url("**/t/req_000001")
        expect(page.locator("#rows tr").nth(1)).to_have_attribute("aria-current", "true")


def test_an_unknown_request_is_said_in_words(filled: Shown, browser: Any) -> None:
    """Where one of the two is gone, the page says which."""
    page = browser.new_page()  # the browser itself notes an answer of 404
    page.goto(f"{filled.url}/t/{trace_id(0)}?with=nobody")
    expect(page.locator("#panel .problem")).to_contain_text("nobody")
    page.close()


def test_hostile_names_are_text_in_a_comparison(filled: Shown, page: Any) -> None:
    """Names and values of facts, and reasons, as they are; nothing runs."""
    page.goto(f"{filled.url}/t/{trace_id(SLOW)}?with={trace_id(OTHER)}")
    table = page.get_by_role("table", name="What differs")
    table.wait_for()
    told = table.evaluate("(table) => table.textContent")
    assert told.count(NASTY) == 3
    assert page.evaluate("() => globalThis.pwned === undefined && document.images.length === 1")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_compares_by_touch(filled: Shown, page: Any, scheme: str) -> None:
    """The button in a request does what the key does; nothing scrolls sideways, and all of it is readable."""
    page.set_viewport_size({"width": 360, "height": 740})
    page.emulate_media(color_scheme=scheme)
    page.goto(filled.url)
    for number in (SLOW, OTHER):
        row(page, number).locator("td.took").click()
        page.get_by_role("button", name="compare", exact=True).click()
        if number == SLOW:
            expect(page.get_by_role("button", name="compare", exact=True)).to_have_attribute("aria-pressed", "true")
            page.get_by_role("button", name="Close").click()
            expect(page.get_by_role("status")).to_be_visible()
            assert page.evaluate("() => document.documentElement.scrollWidth") <= 360
    page.get_by_role("table", name="What differs").wait_for()
    wide = page.evaluate("() => [document.documentElement.scrollWidth, document.querySelector('#panel').scrollWidth]")
    assert max(wide) <= 360
    assert not page.evaluate((Path(__file__).parent.parent / "kit" / "faint.js").read_text())


def test_the_overview_projects_the_month(filled: Shown, page: Any) -> None:
    """Thirty days at the rate of now, of all requests: so it is not there while the view is of some of them."""
    page.goto(f"{filled.url}/overview")
    said = page.locator("#projection")
    expect(said).to_contain_text("At the rate of the last 6 hours, thirty days come to $")
    expect(said).to_contain_text("saved: $")
    page.goto(f"{filled.url}/overview?rule=hard")
    page.locator("#groups tr").first.wait_for()
    expect(said).to_be_hidden()


def test_captured_words_are_shown_when_asked_for(browser: Any, tmp_path: Path) -> None:
    """With the admin token, and as text; before somebody opens them they are nowhere in the page."""
    said = f"said {NASTY}"
    with closing(Capture(tmp_path / "content.db", share=1.0)) as capture:
        asked, answer = b'{"messages":[{"content":"a zebra"}]}', said.encode()
        capture.write(Content(trace_id(0), 1, False, asked, (answer,), len(answer)))
        assert capture.flush()
        with shown(tmp_path, admin_token=TOKEN, content=capture.read) as held:
            held.write(a_request(0))
            page = browser.new_page()  # the browser itself notes the answer of 401
            page.goto(f"{held.url}/t/{trace_id(0)}")
            page.get_by_label("Admin token").fill(TOKEN)
            page.get_by_role("button", name="Open").click()
            row(page, 0).locator("td.took").click()
            words = page.locator("#panel summary", has_text="Captured words")
            words.wait_for()
            assert "zebra" not in page.content()
            words.click()
            expect(page.get_by_role("region", name="request, as captured")).to_contain_text('"content": "a zebra"')
            shown_answer = page.get_by_role("region", name="answer, as captured")
            assert shown_answer.evaluate("(node) => node.textContent") == said
            assert page.evaluate("() => globalThis.pwned === undefined")
            words.click()
            expect(shown_answer).to_have_count(0)
            page.close()


def test_without_a_token_no_words_are_shown(filled: Shown, browser: Any) -> None:
    """The page says what to set."""
    page = browser.new_page()  # the browser itself notes the answer of 403
    page.goto(f"{filled.url}/t/{trace_id(0)}")
    page.locator("#panel summary", has_text="Captured words").click()
    expect(page.locator(".said")).to_contain_text("set `admin_token`")
    page.close()

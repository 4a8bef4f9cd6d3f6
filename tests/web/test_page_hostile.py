"""500 hostile strings wherever somebody outside may name something: shown as text, and nothing runs (S15, S19)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from kit.page import FACTS, Shown, a_browser, a_request, shown

from router.trace.record import Attempt

_CALL = "globalThis.pwned=1"
_SHAPES = (
    '<script>{0}</script>', '<img src=x onerror={0}>', '<svg onload={0}>', '<svg><script>{0}</script></svg>',
    "<iframe srcdoc='<script>parent.pwned=1</script>'>", '<body onload={0}>', '<details open ontoggle={0}>',
    "<a href='javascript:{0}'>x</a>", 'javascript:{0}', 'data:text/html,<script>{0}</script>',
    "<math><mi//xlink:href='x'>", "<style>@import'//127.0.0.1:9/x'</style>",
    '<link rel=stylesheet href=//127.0.0.1:9/x>', '<base href=//127.0.0.1:9/>',
    "<meta http-equiv=refresh content='0;url=//127.0.0.1:9/'>", '<form action=//127.0.0.1:9><button>x',
    '<object data=x>', '<input autofocus onfocus={0}>', '<video><source onerror={0}>',
    '<template><script>{0}</script></template>', '${{{0}}}', '{{{{{0}}}}}', '#{{{0}}}', '`${{{0}}}`',
    '</td></tr></table><script>{0}</script>', ']]><script>{0}</script>', '--><script>{0}</script>', '*/{0}//',
    "';{0}//", '";{0}//', '\\u003cscript\\u003e{0}', '%3Cscript%3E{0}%3C/script%3E', '&lt;script&gt;{0}',
    '\x00<script>{0}</script>', '\x1b[31m{0}\x07', 'line\r\nevent: trace\r\ndata: {{}}\r\n\r\n{0}', '\u2028{0}\u2029',
    '\u202e{0}\u202c', '=HYPERLINK({0})', '@SUM({0})', '../../../etc/passwd?{0}', '//127.0.0.1:9/{0}', '__proto__',
    'constructor', '<', '&', "'", '\xa0', '\\', "a" * 1_900 + "<b>{0}",
)  # fmt: skip
_AROUND = ("{0}", " {0}", "x{0}y", "'{0}", '"{0}', ">{0}", "'>{0}<'", '">{0}<"', "[{0}]", "\t{0}\n")
STRINGS = tuple(around.format(shape.format(_CALL)) for shape, around in itertools.product(_SHAPES, _AROUND))


def hostile(number: int) -> Any:
    """A request with one string, and the nine after it, in every field that somebody outside has a say in."""
    texts = itertools.cycle(STRINGS[number : number + 10])
    rule, t = next(texts), partial(next, texts)
    attempt = Attempt(t(), t(), 0.0, "rejected", 400, request_id=t(), error_type=t())
    return a_request(
        number, ago_s=number, rule=rule, request_id=t(), method=t(), path=t(), tenant=t(), key=t(), client=t(),
        conversation=t(), session=t(), policy=t(), revision=t(), why=(rule, f"rule `{t()}`: {t()}"), tags=(t(), t()),
        model_asked=t(), model_sent=t(), model_answered=t(), lane=t(), edits=(t(), t()),
        labels={"task": t(), t(): t(), "places": {t(): 0.1}}, facts={**FACTS, t(): t(), "betas": [t(), t()]},
        affinity={"lane": t(), "model": t(), "prefix_tokens": 1, "kept": False, "switch": None},
        stop_reason=t(), outcome="upstream_error", error_type=t(), error_code=t(), price_version=t(),
        attempts=[attempt, attempt], spans=[(t(), 0.0, 0.1)], cache_reason=t(),
    )  # fmt: skip


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    with shown(tmp_path_factory.mktemp("attacked")) as attacked:
        attacked.write(*map(hostile, range(500)))
        yield attacked


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with a_browser() as browser:
        yield browser


@pytest.fixture
def page(browser: Any, attacked: Shown) -> Iterator[Any]:
    """A tab in which nothing may run, be asked of another host, be blocked by the policy, open or navigate."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.set_default_timeout(15_000)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: wrong.append("a dialog"))
    page.on("popup", lambda _: wrong.append("a window"))
    page.on("console", lambda message: wrong.append(message.text) if "Security Policy" in message.text else None)
    page.on("request", lambda asked: None if asked.url.startswith(attacked.url) else wrong.append(asked.url))
    yield page
    assert page.evaluate("() => globalThis.pwned === undefined && ({}).pwned === undefined")
    made = page.evaluate(
        "() => document.querySelectorAll('script:not([src]), iframe, object, embed, base, style').length"
    )
    context.close()
    assert made == 0
    assert not wrong


def test_there_are_five_hundred_of_them() -> None:
    """Each is another string."""
    assert len(set(STRINGS)) == len(STRINGS) == 500


def test_the_list_shows_them_as_text(attacked: Shown, page: Any) -> None:
    """All rows, to the last page; each cell holds the very characters."""
    page.goto(attacked.url)
    for count in (100, 200, 300, 400, 500):
        page.locator(f"#rows tr:nth-child({count})").wait_for(state="attached")
        if count < 500:
            page.locator("#older").click()
    told = page.locator("td.rule").evaluate_all("(cells) => cells.map((cell) => cell.textContent)")
    assert told == list(STRINGS)


def test_they_are_text_when_opened(attacked: Shown, page: Any) -> None:
    """Every sixth of fifty requests in the panel, with ten strings each, in all the places that a request has."""
    page.goto(attacked.url)
    for number in range(0, 500, 60):
        page.locator("#search").fill(f"{number + 1:032x}")
        page.keyboard.press("Enter")
        page.locator(f"#panel dd:text-is('{number + 1:032x}')").wait_for()
        told = page.locator("#panel").evaluate("(panel) => panel.textContent")
        assert [text for text in STRINGS[number : number + 10] if text not in told] == []
        page.locator("#panel").get_by_role("button", name="Close").click()


def test_they_push_nothing_out_of_a_phone(attacked: Shown, page: Any) -> None:
    """However long and unbreakable a name is, nothing scrolls sideways."""
    page.set_viewport_size({"width": 360, "height": 740})
    for path, part in (("/?rule=" + "a" * 1_900 + "<b>" + _CALL, "#rows tr"), ("/overview", "#groups tr")):
        page.goto(attacked.url + path)
        page.locator(part).first.wait_for()
        assert page.evaluate("() => document.documentElement.scrollWidth") <= 360
    page.goto(f"{attacked.url}/t/{491:032x}")
    page.locator("#panel .block").first.wait_for()
    assert page.evaluate("() => document.querySelector('#panel').scrollWidth") <= 360


def test_the_overview_shows_them_as_names(attacked: Shown, page: Any) -> None:
    """Groups, legends and what a chart says of its cursor."""
    for by in ("rule", "model", "key", "lane"):
        page.goto(f"{attacked.url}/overview?by={by}")
        page.locator("#groups tr").nth(8).wait_for()
        chart = page.get_by_role("slider", name="Requests over time")
        chart.focus()
        page.keyboard.press("End")
        assert chart.get_attribute("aria-valuetext")


def test_they_filter_like_any_name(attacked: Shown, page: Any) -> None:
    """A click on a hostile name puts it into the address, and the address brings the same requests back."""
    page.goto(attacked.url)
    for number in range(0, 100, 50):
        page.goto(attacked.url)
        page.locator("#rows tr").nth(number).locator("td.rule button").click()
        page.locator(".chip").wait_for()
        page.locator("#rows tr:only-child").wait_for(state="attached")
        assert page.locator("td.rule").text_content() == STRINGS[number]
        page.reload()
        page.locator("#rows tr:only-child").wait_for(state="attached")


def test_they_arrive_live_one_event_each(attacked: Shown, page: Any) -> None:
    """No string ends its own event: what is written is what arrives, nothing is made up in between (S15)."""
    page.goto(f"{attacked.url}/?min_cost_usd=5")
    page.locator("#empty").wait_for()
    for number in range(0, 500, 10):
        trace = hostile(number)
        trace.trace_id, trace.cost_pusd = f"{number + 1_001:032x}", 9 * 10**12
        attacked.write(trace)
    page.locator("#rows tr:nth-child(50)").wait_for(state="attached")
    assert page.locator("#rows tr").count() == 50

"""The page in a real browser, on `travelrec serve` with the offline model, over real sockets."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Route, expect, sync_playwright

from page_driver import CHROMIUM_ARGUMENTS, Model, Service, Visitor
from support import free_port

PHONE = {"width": 360, "height": 740}
NARROWEST = {"width": 320, "height": 640}
WIDE = {"width": 1280, "height": 860}
UNKNOWN_UID = "0198c1000000700080000000000000ff"
BUSY = {"error": "Service unavailable", "message": "The store can't be reached. Nothing was accepted."}

NewVisitor = Callable[..., Visitor]


@pytest.fixture(scope="module")
def browser(chromium_path: Path) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path, args=CHROMIUM_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, chromium_path: Path) -> Iterator[Service]:
    """As it is when nothing is set: with the built-in offline model."""
    service = Service(tmp_path_factory.mktemp("data"))
    try:
        service.start()
        yield service
    finally:
        service.close()


@pytest.fixture(scope="module")
def shared_model(chromium_path: Path) -> Iterator[Model]:
    model = Model()
    try:
        model.start()
        yield model
    finally:
        model.close()


@pytest.fixture
def model(shared_model: Model) -> Model:
    shared_model.behave()
    return shared_model


@pytest.fixture(scope="module")
def shared_steered(tmp_path_factory: pytest.TempPathFactory, shared_model: Model) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("data"), shared_model)
    try:
        service.start()
        yield service
    finally:
        service.close()


@pytest.fixture
def steered(shared_steered: Service, model: Model) -> Service:
    """With an offline model that the test steers, and that is set up like a real one."""
    return shared_steered


@pytest.fixture
def new_visitor(browser: Browser) -> Iterator[NewVisitor]:
    """Make visitors, each with a browser profile of their own; in the end none may have met a defect."""
    visitors: list[Visitor] = []

    def make(service: Service, **options: object) -> Visitor:
        context = browser.new_context(**{"viewport": WIDE, "locale": "en-GB", **options})
        visitors.append(Visitor(context, service.url))
        return visitors[-1]

    yield make
    for visitor in visitors:
        visitor.context.close()
    assert [defect for visitor in visitors for defect in visitor.defects()] == []


# --- asking, and what becomes of it -------------------------------------------------------------------


def test_a_request_by_mouse_shows_each_step_and_the_three_ideas(service, new_visitor):
    """Choosing from the list, a season and the button lead to what the API answers, without a word on the console."""
    visitor = new_visitor(service)
    visitor.visit()
    expect(visitor.request).to_be_hidden()
    visitor.country.click()
    visitor.country.press_sequentially("cana")
    visitor.page.get_by_role("option", name="Canada").click()
    expect(visitor.country).to_have_value("Canada")
    visitor.page.get_by_role("radio", name="Winter").click()
    visitor.page.get_by_role("button", name="Get three ideas").click()
    expect(visitor.title).to_have_text("Canada in winter")
    visitor.sees("completed")
    statuses = visitor.page.evaluate("checks.statuses")
    assert statuses in (["accepted", "pending", "completed"], ["accepted", "completed"])
    uid = visitor.page.locator("#uid").input_value()
    assert visitor.page.url == f"{service.url}/?uid={uid}"
    assert visitor.ideas.all_inner_texts() == service.read(uid)["recommendations"]
    expect(visitor.page.locator("[data-step=accepted] .step-note")).to_have_text(re.compile(r"^\d.* m?s$"))
    expect(visitor.page.locator("[data-step=done] .step-note")).to_have_text(re.compile(r"^\d.* m?s$"))
    assert visitor.page.title() == "✓ Canada in winter · travelrec"
    assert visitor.console == []


def test_a_request_by_keyboard_alone(service, new_visitor):
    """Every step can be done with the keys that a keyboard user expects, and the focus is where it is useful."""
    visitor = new_visitor(service)
    visitor.visit()
    press = visitor.page.keyboard.press
    press("Tab")
    expect(visitor.page.get_by_text("Skip to the form")).to_be_focused()
    press("Enter")
    press("Tab")
    expect(visitor.country).to_be_focused()
    visitor.page.keyboard.type("ICEL")
    press("ArrowDown")
    expect(visitor.page.get_by_role("option", selected=True)).to_have_text("Iceland")
    press("Enter")
    expect(visitor.country).to_have_value("Iceland")
    press("Tab")
    press("ArrowRight")
    expect(visitor.page.get_by_role("radio", name="Summer")).to_be_checked()
    press("Tab")
    expect(visitor.submit).to_be_focused()
    press("Enter")
    expect(visitor.title).to_have_text("Iceland in summer")
    expect(visitor.title).to_be_focused()
    visitor.sees("completed")
    visitor.is_told("Iceland in summer", "Done", *visitor.ideas.all_inner_texts())


def test_another_spelling_is_taken_and_shown_by_the_common_name(service, new_visitor):
    """What is not in the list is sent as it was typed; the service knows codes and other names."""
    visitor = new_visitor(service)
    visitor.visit()
    visitor.choose("ivory coast", "Spring")
    visitor.submit.click()
    visitor.sees("completed")
    expect(visitor.title).to_have_text(re.compile("Ivoire in spring"))


def test_a_pending_request_can_be_cancelled(steered, model, new_visitor):
    """Cancel ends it at the service too, says so, and leaves the focus on the request."""
    model.behave(latency_s=600)
    visitor = new_visitor(steered)
    visitor.visit()
    uid = visitor.ask("Chile", "Autumn")
    visitor.sees("pending")
    expect(visitor.page.locator("[aria-current=step]")).to_contain_text("Working")
    visitor.page.get_by_role("button", name="Cancel request").click()
    visitor.sees("cancelled")
    expect(visitor.title).to_be_focused()
    told = str(steered.read(uid)["message"])
    expect(visitor.page.locator("#state")).to_have_text(told)
    visitor.is_told("Cancelled", told)
    expect(visitor.page.get_by_role("button", name="Cancel request")).to_be_hidden()


def test_a_failed_request_says_why_and_can_be_asked_again(steered, model, new_visitor):
    """The service's own words for the failure are shown; asking again is a new request."""
    model.behave(faults={"refusal": 1.0})
    visitor = new_visitor(steered)
    visitor.visit()
    uid = visitor.ask("Peru", "Winter")
    visitor.sees("failed")
    told = steered.read(uid)
    expect(visitor.page.locator("#state")).to_contain_text(str(told["error"]))
    expect(visitor.page.locator("#state")).to_contain_text(str(told["message"]))
    visitor.is_told("Failed", str(told["message"]))
    expect(visitor.page.locator("[data-state=broken]")).to_contain_text("Failed")
    model.behave()
    visitor.page.get_by_role("button", name="Ask again").click()
    visitor.sees("completed")
    assert visitor.page.locator("#uid").input_value() != uid
    assert visitor.page.locator(".chip").all_inner_texts() == ["Done", "Failed"]


# --- what is wrong with the form ----------------------------------------------------------------------


def test_an_unknown_country_is_explained_at_the_field_with_names_to_take(service, new_visitor):
    """The field is marked and described, has the focus, and one press takes the suggestion."""
    visitor = new_visitor(service)
    visitor.visit()
    visitor.choose("Portugall", "Summer")
    visitor.submit.click()
    error = visitor.page.locator("#country-error")
    expect(error).to_contain_text("Did you mean Portugal")
    expect(visitor.country).to_have_attribute("aria-invalid", "true")
    expect(visitor.country).to_have_accessible_description(re.compile("Did you mean Portugal"))
    expect(visitor.country).to_be_focused()
    visitor.page.get_by_role("button", name="Portugal", exact=True).click()
    expect(visitor.country).to_have_value("Portugal")
    expect(error).to_be_hidden()
    expect(visitor.country).not_to_have_attribute("aria-invalid", "true")
    visitor.submit.click()
    visitor.sees("completed")


def test_an_unknown_country_without_a_near_name_gets_no_made_up_suggestion(service, new_visitor):
    """The example in the service's message is not offered as if it were meant."""
    visitor = new_visitor(service)
    visitor.visit()
    visitor.choose("qqqq", "Summer")
    visitor.submit.click()
    expect(visitor.page.locator("#country-error")).to_contain_text("qqqq")
    expect(visitor.page.locator("#country-suggestions")).to_be_hidden()


def test_an_empty_form_is_explained_without_asking_the_service(service, new_visitor):
    """What is missing is said next to each field, and nothing is sent."""
    visitor = new_visitor(service)
    visitor.visit()
    visitor.submit.click()
    expect(visitor.page.locator("#country-error")).to_be_visible()
    expect(visitor.page.locator("#season-error")).to_be_visible()
    expect(visitor.country).to_be_focused()
    visitor.country.fill("Peru")
    expect(visitor.page.locator("#country-error")).to_be_hidden()
    visitor.page.keyboard.press("Enter")
    expect(visitor.page.get_by_role("radio", name="Spring")).to_be_focused()
    assert not [url for url in visitor.requested if "/recommendations" in url]


def test_the_list_of_countries_follows_the_pattern_of_a_combobox(service, new_visitor):
    """Arrows move and wrap, Escape closes and keeps the text, Tab takes the marked name, accents don't matter."""
    visitor = new_visitor(service)
    visitor.visit()
    press = visitor.page.keyboard.press
    visitor.country.fill("united")
    expect(visitor.country).to_have_attribute("aria-expanded", "true")
    names = visitor.options.all_inner_texts()
    assert all("nited" in name for name in names)
    press("ArrowUp")
    expect(visitor.page.get_by_role("option", selected=True)).to_have_text(names[-1])
    press("ArrowDown")
    expect(visitor.page.get_by_role("option", selected=True)).to_have_text(names[0])
    marked = visitor.page.get_by_role("option", selected=True).get_attribute("id")
    expect(visitor.country).to_have_attribute("aria-activedescendant", str(marked))
    press("Escape")
    expect(visitor.country).to_have_attribute("aria-expanded", "false")
    expect(visitor.country).to_have_value("united")
    press("Escape")
    expect(visitor.country).to_have_value("united")
    visitor.country.fill("cote d")
    expect(visitor.options).to_have_count(1)
    press("ArrowDown")
    press("Tab")
    expect(visitor.country).to_have_value(re.compile("Ivoire"))
    expect(visitor.options.first).to_be_hidden()
    visitor.page.get_by_role("button", name="Show all countries").click()
    assert visitor.options.count() > 190
    visitor.page.get_by_role("heading", level=1).click()
    expect(visitor.page.get_by_role("listbox")).to_be_hidden()


# --- the last requests, and addresses ------------------------------------------------------------------


def test_a_reload_keeps_the_request_and_the_list(service, new_visitor):
    """After a reload the same request is on show, and the list opens each of the last ones."""
    visitor = new_visitor(service)
    visitor.visit()
    first = visitor.ask("Norway", "Winter")
    visitor.sees("completed")
    second = visitor.ask("Kenya", "Summer")
    visitor.sees("completed")
    visitor.page.reload()
    expect(visitor.title).to_have_text("Kenya in summer")
    expect(visitor.ideas).to_have_count(3)
    assert visitor.past.evaluate_all("links => links.map((link) => new URL(link.href).search)") == [
        f"?uid={second}",
        f"?uid={first}",
    ]
    visitor.past.nth(1).click()
    expect(visitor.title).to_have_text("Norway in winter")
    assert visitor.ideas.all_inner_texts() == service.read(first)["recommendations"]
    visitor.page.go_back()
    expect(visitor.title).to_have_text("Kenya in summer")
    visitor.page.get_by_role("button", name="Clear list").click()
    expect(visitor.past).to_have_count(0)
    visitor.page.reload()
    expect(visitor.title).to_have_text("Kenya in summer")


def test_a_reload_while_pending_goes_on_following(steered, model, new_visitor):
    """A request that was pending at the reload is followed to its end, with the time since it was asked."""
    model.behave(latency_s=3)
    visitor = new_visitor(steered)
    visitor.visit()
    visitor.ask("Oman", "Spring")
    visitor.sees("pending")
    visitor.page.reload()
    visitor.sees("pending")
    expect(visitor.page.locator("[data-step=working] .step-note")).to_have_text(re.compile(r"\d s"))
    visitor.sees("completed")
    expect(visitor.title).to_have_text("Oman in spring")


def test_the_list_is_bounded_and_survives_rubbish_in_the_storage(service, new_visitor):
    """Ten requests are remembered at most; what is no list of ours is no reason to fail."""
    visitor = new_visitor(service)
    visitor.visit()
    many = [
        {
            "uid": f"{0x0198C1 + n:032x}",
            "country": "Fiji",
            "season": "summer",
            "status": "failed",
            "askedAt": n,
        }
        for n in range(12)
    ]
    visitor.page.evaluate("many => localStorage.setItem('travelrec.requests', many)", json.dumps(many))
    visitor.page.reload()
    expect(visitor.past).to_have_count(10)
    visitor.ask("Malta", "Autumn")
    expect(visitor.past).to_have_count(10)
    expect(visitor.past.first).to_contain_text("Malta in autumn")
    visitor.sees("completed")  # after which the page writes no more
    for rubbish in ("{", "null", "7", '[null, 1, {"uid": "x"}]'):
        visitor.page.evaluate("rubbish => localStorage.setItem('travelrec.requests', rubbish)", rubbish)
        visitor.visit()
        expect(visitor.past).to_have_count(0)


def test_a_request_of_somebody_else_opens_by_its_uid(service, new_visitor):
    """A uid can be typed in, with hyphens and capitals too, and the address can be passed on."""
    author, reader = new_visitor(service), new_visitor(service)
    author.visit()
    uid = author.ask("Japan", "Spring")
    author.sees("completed")
    reader.visit(f"/?uid={uid}")
    expect(reader.title).to_have_text("Japan in spring")
    reader.visit()
    reader.page.get_by_text("Open a request by its uid").click()
    field = reader.page.get_by_label("uid (32 hexadecimal digits)")
    field.fill("not a uid")
    field.press("Enter")
    expect(reader.page.locator("#open-error")).to_be_visible()
    expect(field).to_be_focused()
    field.fill(f"{uid[:8]}-{uid[8:12]}-{uid[12:16]}-{uid[16:20]}-{uid[20:]}".upper())
    field.press("Enter")
    expect(reader.title).to_have_text("Japan in spring")
    expect(reader.title).to_be_focused()
    expect(reader.ideas).to_have_count(3)


@pytest.mark.parametrize("uid", [UNKNOWN_UID, "nonsense"])
def test_an_unknown_uid_is_explained(service, new_visitor, uid):
    """An address with a uid that does not exist says so, and is not remembered."""
    visitor = new_visitor(service)
    visitor.visit(f"/?uid={uid}")
    visitor.sees("unknown")
    expect(visitor.page.locator("#state")).to_contain_text(re.compile("uid", re.IGNORECASE))
    expect(visitor.past).to_have_count(0)
    expect(visitor.page.get_by_role("button", name="Cancel request")).to_be_hidden()


def test_the_uid_can_be_copied(service, new_visitor):
    """The button puts the uid into the clipboard and says so."""
    visitor = new_visitor(service, permissions=["clipboard-read", "clipboard-write"])
    visitor.visit()
    uid = visitor.ask("Spain", "Winter")
    visitor.sees("completed")  # which is announced, too
    visitor.page.get_by_role("button", name="Copy").click()
    visitor.is_told("copied")
    assert visitor.page.evaluate("navigator.clipboard.readText()") == uid


def test_the_trace_id_is_shown(tmp_path, browser, new_visitor):
    """Where the service is traced, the request's trace id stands below its uid; elsewhere there is no such line."""
    nobody = f"http://127.0.0.1:{free_port()}"  # spans are made whether or not somebody collects them
    traced = Service(tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=nobody)
    try:
        traced.start()
        visitor = new_visitor(traced)
        visitor.visit()
        visitor.ask("Spain", "Winter")
        expect(visitor.page.locator("#trace")).to_have_text(re.compile(r"^trace [0-9a-f]{32}$"))
    finally:
        traced.close()


def test_without_traces_there_is_no_trace_id(service, new_visitor):
    """The line is hidden, not empty."""
    visitor = new_visitor(service)
    visitor.visit()
    visitor.ask("Spain", "Summer")
    expect(visitor.page.locator("#trace")).to_be_hidden()


# --- when something is away ---------------------------------------------------------------------------


def test_a_service_killed_while_pending_is_waited_for(tmp_path, model, new_visitor):
    """The page says that it lost touch, goes on asking, and shows the result once the service is back."""
    model.behave(latency_s=600)
    service = Service(tmp_path, model)
    try:
        service.start()
        visitor = new_visitor(service)
        visitor.visit()
        uid = visitor.ask("Nepal", "Spring")
        visitor.sees("pending")
        service.process.kill()
        expect(visitor.notice).to_contain_text("Lost touch with the service")
        expect(visitor.notice).to_contain_text("Trying again")
        visitor.is_told("Lost touch")
        model.behave()
        service.start()
        visitor.sees("completed")
        expect(visitor.notice).to_have_count(0)
        assert visitor.ideas.all_inner_texts() == service.read(uid)["recommendations"]
    finally:
        service.close()


def test_a_busy_service_is_asked_again_when_it_said_and_never_twice(service, new_visitor):
    """503 with Retry-After shows when the next try is; the tries carry one key, so that they are one request."""
    visitor = new_visitor(service)
    keys: list[str] = []

    def busy_at_first(route: Route) -> None:
        keys.append(route.request.headers["idempotency-key"])
        if len(keys) > 1:
            route.continue_()
        else:
            route.fulfill(status=503, headers={"Retry-After": "2"}, json=BUSY)

    visitor.page.route("**/recommendations?country=*", busy_at_first)
    visitor.visit()
    visitor.choose("Italy", "Autumn")
    visitor.submit.click()
    expect(visitor.notice).to_contain_text(BUSY["message"])
    expect(visitor.notice).to_contain_text(re.compile("Trying again in [12] s"))
    visitor.sees("completed")
    expect(visitor.notice).to_have_count(0)
    assert len(keys) == 2
    assert len(set(keys)) == 1


def test_trying_again_can_be_hurried_and_stopped(service, new_visitor):
    """While a far try is counted down, one button tries now and another gives up."""
    visitor = new_visitor(service)
    tries: list[str] = []

    def busy(route: Route) -> None:
        tries.append(route.request.url)
        route.fulfill(status=503, headers={"Retry-After": "100"}, json=BUSY)

    visitor.page.route("**/recommendations?country=*", busy)
    visitor.visit()
    visitor.choose("Italy", "Spring")
    visitor.submit.click()
    expect(visitor.notice).to_contain_text(re.compile(r"Trying again in \d+ s"))
    with visitor.page.expect_response("**/recommendations?country=*"):
        visitor.page.get_by_role("button", name="Try now").click()
    expect(visitor.notice).to_contain_text(re.compile(r"Trying again in \d+ s"))
    expect(visitor.page.get_by_role("button", name="Try now")).to_be_focused()
    visitor.page.get_by_role("button", name="Stop trying").click()
    expect(visitor.notice).to_have_count(0)
    expect(visitor.submit).to_be_focused()
    expect(visitor.submit).to_have_text("Get three ideas")
    assert len(tries) == 2


def test_a_lost_network_is_explained_and_the_request_sent_when_it_is_back(service, new_visitor):
    """Nothing is lost when the network is away at the moment of asking."""
    visitor = new_visitor(service)
    visitor.visit()
    visitor.choose("Ghana", "Winter")
    visitor.context.set_offline(True)
    visitor.submit.click()
    expect(visitor.notice).to_contain_text("be reached")
    visitor.context.set_offline(False)
    visitor.sees("completed")
    expect(visitor.notice).to_have_count(0)


def test_without_event_streams_the_page_asks_and_waits(service, new_visitor):
    """When a stream never stands, because of a proxy say, the page finds the result by long polling."""
    visitor = new_visitor(service)
    visitor.page.route("**/recommendations/events?*", lambda route: route.abort())
    # Each plain read finds it pending, so that only a waiting one brings the end.
    pending = {"uid": UNKNOWN_UID, "status": "pending", "message": "Not yet."}
    visitor.page.route(
        re.compile(r"/recommendations\?uid=[0-9a-f]{32}$"),
        lambda route: route.fulfill(json=pending),
    )
    visitor.visit()
    visitor.ask("Cuba", "Summer")
    visitor.sees("completed")
    assert [url for url in visitor.requested if "wait=20" in url]


def test_what_the_service_says_is_text_and_never_markup(service, new_visitor):
    """Tags in an answer are shown as they are, not made into elements."""
    visitor = new_visitor(service)
    tag = "<img src=x onerror=document.title='owned'><b>bold</b>"
    answer = {"uid": UNKNOWN_UID, "country": tag, "season": "summer", "recommendations": [tag, "b", "c"]}
    visitor.page.route(
        re.compile(rf"/recommendations\?uid={UNKNOWN_UID}"),
        lambda route: route.fulfill(json=answer | {"status": "completed"}),
    )
    visitor.visit(f"/?uid={UNKNOWN_UID}")
    expect(visitor.ideas.first).to_have_text(tag)
    expect(visitor.title).to_have_text(f"{tag} in summer")
    expect(visitor.past.first).to_contain_text(tag)
    assert visitor.page.locator("main img, main b").count() == 0


# --- for everybody, on every device -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "viewport"),
    [("light", WIDE), ("dark", WIDE), ("light", NARROWEST), ("dark", PHONE)],
    ids=["light-wide", "dark-wide", "light-narrowest", "dark-phone"],
)
def test_every_state_can_be_read_and_fits(steered, model, new_visitor, tmp_path, scheme, viewport):
    """In light and dark, from 320 px up: enough contrast for texts and edges, nothing wider than the window."""
    visitor = new_visitor(steered, color_scheme=scheme, viewport=viewport)
    shots: dict[str, bytes] = {}

    def look(state: str) -> None:
        visitor.page.evaluate("checks.standstill()")
        assert visitor.faint() == [], state
        assert visitor.overflow_px() <= 0, state
        shots[state] = visitor.page.screenshot(path=tmp_path / f"{state}.png", full_page=True)

    visitor.visit()
    look("empty")
    visitor.country.fill("united")
    visitor.page.keyboard.press("ArrowDown")
    look("choosing")
    visitor.choose("Portugall" + "l" * 80, "Winter")
    visitor.submit.click()
    expect(visitor.page.locator("#country-error")).to_be_visible()
    look("invalid")
    visitor.page.route("**/recommendations?country=*", lambda route: route.fulfill(status=503, json=BUSY))
    visitor.submit.click()
    expect(visitor.notice).to_be_visible()
    look("busy")
    visitor.page.get_by_role("button", name="Stop trying").click()
    visitor.page.unroute("**/recommendations?country=*")
    model.behave(latency_s=600)
    visitor.ask("Saint Vincent and the Grenadines", "Summer")
    visitor.sees("pending")
    look("pending")
    visitor.page.get_by_role("button", name="Cancel request").click()
    visitor.sees("cancelled")
    look("cancelled")
    model.behave(faults={"refusal": 1.0})
    visitor.ask(f"{'Chad' if scheme == 'dark' else 'Mali'}", "Summer")
    visitor.sees("failed")
    look("failed")
    model.behave()
    visitor.ask("Fiji", "Autumn")
    visitor.sees("completed")
    look("completed")
    assert len(set(shots.values())) == len(shots), "each state looks different"
    background = visitor.page.evaluate("checks.background()")
    assert (background < 0.1) == (scheme == "dark")


def test_a_screen_reader_finds_names_roles_and_landmarks(service, new_visitor):
    """Everything that can be used has a role and a name; the structure is one h1, landmarks and live regions."""
    visitor = new_visitor(service)
    visitor.visit()
    page = visitor.page
    for role, name in [
        ("combobox", "Country or territory"),
        ("group", "Season"),
        ("radio", "Spring"),
        ("radio", "Winter"),
        ("button", "Get three ideas"),
        ("link", "API docs"),
        ("region", "Where to, and when?"),
        ("region", "Your last requests"),
    ]:
        expect(page.get_by_role(role, name=name)).to_have_count(1)
    expect(visitor.country).to_have_attribute("aria-autocomplete", "list")
    expect(visitor.country).to_have_attribute("aria-required", "true")
    expect(page.get_by_role("main")).to_have_count(1)
    expect(page.get_by_role("heading", level=1)).to_have_count(1)
    expect(page.get_by_role("status")).to_have_attribute("aria-live", "polite")
    expect(page.locator("html")).to_have_attribute("lang", "en")
    visitor.ask("Cyprus", "Spring")
    expect(page.get_by_role("article", name="Cyprus in spring")).to_be_visible()
    expect(page.get_by_role("list", name="Progress").get_by_role("listitem")).to_have_count(3)
    visitor.sees("completed")
    expect(page.get_by_role("list", name="Recommendations").get_by_role("listitem")).to_have_count(3)
    assert page.evaluate("checks.repeatedIds()") == []
    assert page.evaluate("checks.unnamed()") == []


def test_focus_is_always_visible_and_targets_are_large_enough(service, new_visitor):
    """Whatever Tab reaches has an outline, and can be hit with a finger (WCAG 2.5.8: 24 px)."""
    visitor = new_visitor(service, viewport=PHONE)
    visitor.visit()
    visitor.ask("Qatar", "Winter")
    visitor.sees("completed")
    page = visitor.page
    page.reload()
    visitor.sees("completed")
    seen = []
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement === document.body"):
            break
        seen.append(page.evaluate("checks.focused()"))
    assert len(seen) > 8
    assert [one for one in seen if one["outline"] < 2] == []
    assert [one for one in seen if min(one["width"], one["height"]) < 24] == []


def test_nothing_moves_for_those_who_asked_for_it(steered, model, new_visitor):
    """With prefers-reduced-motion nothing is animated, also not while a request is pending."""
    model.behave(latency_s=600)
    visitor = new_visitor(steered, reduced_motion="reduce")
    visitor.visit()
    visitor.ask("Togo", "Autumn")
    visitor.sees("pending")
    assert visitor.page.evaluate("document.getAnimations().length") == 0
    visitor.page.get_by_role("button", name="Cancel request").click()
    visitor.sees("cancelled")


def test_the_page_says_that_the_offline_model_answers(service, steered, new_visitor):
    """The banner is there with the built-in offline model, and only then."""
    offline, real = new_visitor(service), new_visitor(steered)
    offline.visit()
    expect(offline.page.get_by_text("OPENAI_API_KEY")).to_be_visible()
    real.visit()
    expect(real.page.get_by_text("OPENAI_API_KEY")).to_be_hidden()


def test_the_docs_work_without_internet(service, new_visitor):
    """Swagger UI draws the API, and runs a request, with what this service serves."""
    visitor = new_visitor(service)
    page = visitor.page
    page.goto(f"{service.url}/docs")
    page.locator(".opblock-post", has_text="/recommendations").first.click()
    page.get_by_role("button", name="Try it out").click()
    page.get_by_placeholder("country").fill("Gabon")
    page.get_by_placeholder("season").fill("winter")
    page.get_by_role("button", name="Execute").click()
    expect(page.locator(".live-responses-table tbody .response-col_status")).to_contain_text("202")
    assert visitor.console == []

"""The chat in a real browser, on `travelrec serve` with an offline model that the test steers."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect, sync_playwright

from page_driver import CHROMIUM_ARGUMENTS, Model, Service, Visitor

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def model(chromium_path: Path) -> Iterator[Model]:
    model = Model()
    try:
        model.start()
        model.behave()
        yield model
    finally:
        model.close()


@pytest.fixture
def service(tmp_path: Path, model: Model) -> Iterator[Service]:
    service = Service(tmp_path, model)
    try:
        service.start()
        yield service
    finally:
        service.close()


@pytest.fixture
def visitor(service: Service, chromium_path: Path) -> Iterator[Visitor]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path, args=CHROMIUM_ARGUMENTS)
        visitor = Visitor(browser.new_context(viewport={"width": 360, "height": 740}), service.url)
        yield visitor
        socket = f"ws://127.0.0.1:{service.port}/ws"  # a cut connection is no defect of the page
        visitor.console = [said for said in visitor.console if socket not in said]
        defects = visitor.defects()
        browser.close()
        assert defects == []


def sign_in(page: Page, userid: str) -> None:
    page.get_by_label("User id").fill(userid)
    page.get_by_label("Token").fill("any")
    page.get_by_role("button", name="Sign in").click()
    connected(page)


def connected(page: Page) -> None:
    expect(page.locator("#chat-link")).to_have_text("Connected")


def say(page: Page, content: str) -> None:
    page.get_by_label("Message").fill(content)
    page.keyboard.press("Enter")


def talk(page: Page, kind: str) -> Locator:
    return page.locator(f"#talk [data-type={kind}]")


def test_a_message_is_answered_and_the_history_is_there_after_a_reload(visitor: Visitor) -> None:
    """Signing in, asking and reading the answer work by keyboard; what was said stays, and is text."""
    page = visitor.page
    page.goto(f"{visitor.url}/chat")
    page.get_by_label("User id").fill("not an id")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("1 to 64")
    sign_in(page, "alice")
    expect(page.get_by_label("Message")).to_be_focused()
    expect(page.get_by_text("Nothing said yet.")).to_be_visible()
    say(page, "What is <b>Oslo</b> like?")
    expect(talk(page, "response")).to_have_count(1)
    expect(page.locator(".how")).to_have_count(0)
    visitor.is_told(talk(page, "response").locator(".words").inner_text().rpartition("\n")[2])
    page.reload()
    connected(page)
    expect(talk(page, "message").locator(".words")).to_have_text("You: What is <b>Oslo</b> like?")
    expect(talk(page, "response")).to_have_count(1)
    texts = page.evaluate("checks.contrasts()")
    assert len(texts) > 8
    assert [text for text, ratio, needed in texts if ratio < needed] == []
    assert page.evaluate("checks.unnamed()") == page.evaluate("checks.repeatedIds()") == []
    assert visitor.overflow_px() == 0
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("User id")).to_be_focused()
    expect(talk(page, "response")).to_have_count(0)


def test_a_cut_connection_loses_nothing_and_answers_nothing_twice(
    service: Service, model: Model, visitor: Visitor
) -> None:
    """What is on its way as the service is killed, and what is written meanwhile, is answered once, in order."""
    page = visitor.page
    page.goto(f"{visitor.url}/chat")
    sign_in(page, "bob")
    say(page, "one")
    expect(talk(page, "response")).to_have_count(1)
    model.behave(latency_s=600)
    say(page, "two")
    expect(page.locator("[data-state=sent]")).to_contain_text("two")
    service.process.kill()
    expect(page.locator("#chat-link")).to_have_text("Reconnecting")
    expect(visitor.notice).to_contain_text("Nothing is lost")
    say(page, "three")
    expect(page.locator("[data-state=waiting]")).to_contain_text(["two", "three"])
    model.behave()
    service.start()
    connected(page)
    expect(visitor.notice).to_have_count(0)
    expect(talk(page, "response")).to_have_count(3)
    expect(page.locator(".how")).to_have_count(0)
    page.reload()
    connected(page)
    expect(talk(page, "response")).to_have_count(3)
    expect(talk(page, "message").locator(".words")).to_have_text(
        [re.compile(n) for n in ("one", "two", "three")]
    )
    kinds = page.locator("#talk li").evaluate_all("items => items.map(({ dataset }) => dataset.type)")
    assert kinds == ["message", "response"] * 3


def test_a_message_that_failed_says_so_and_can_be_sent_again(model: Model, visitor: Visitor) -> None:
    """The error stands at the message; sent again it is answered, and shown once."""
    page = visitor.page
    page.goto(f"{visitor.url}/chat")
    sign_in(page, "carol")
    model.behave(faults={"refusal": 1.0})
    say(page, "Where to?")
    expect(page.locator("[data-state=failed]")).to_contain_text("Service temporarily unavailable")
    model.behave()
    page.get_by_role("button", name="Send again").click()
    expect(talk(page, "response")).to_have_count(1)
    expect(page.locator(".how")).to_have_count(0)


def test_an_error_that_is_heard_again_is_not_the_next_messages(
    service: Service, model: Model, visitor: Visitor
) -> None:
    """A message failed, the next one is on its way as the service is killed: it is sent again, and stays sent."""
    page = visitor.page
    page.goto(f"{visitor.url}/chat")
    sign_in(page, "erin")
    model.behave(faults={"refusal": 1.0})
    say(page, "one")
    expect(page.locator("[data-state=failed]")).to_contain_text("one")
    model.behave(latency_s=600)
    say(page, "two")
    expect(page.locator("[data-state=sent]")).to_contain_text("two")
    service.process.kill()
    expect(page.locator("#chat-link")).to_have_text("Reconnecting")
    model.behave(piece_s=0.7)
    service.start()
    expect(talk(page, "coming")).to_be_visible()
    expect(page.locator("[data-state=sent]")).to_contain_text("two")
    expect(page.locator("[data-state=failed]")).to_have_count(1)
    expect(talk(page, "response")).to_have_count(1)
    expect(page.locator("[data-state=failed]")).to_contain_text("one")


def test_an_answer_is_seen_while_it_is_made(service: Service, model: Model, visitor: Visitor) -> None:
    """It grows behind its message, is gone with a lost connection, and the response takes its place."""
    page = visitor.page
    page.goto(f"{visitor.url}/chat")
    sign_in(page, "dave")
    coming = talk(page, "coming").locator(".words")
    model.behave(piece_s=3)
    say(page, "Where to?")
    expect(coming).to_be_visible()
    service.process.kill()
    expect(page.locator("#chat-link")).to_have_text("Reconnecting")
    expect(coming).to_have_count(0)
    model.behave(piece_s=0.7)
    service.start()
    expect(coming).to_be_visible()
    grown = [coming.inner_text()]
    for _ in range(2):
        expect(coming).not_to_have_text(grown[-1])
        grown.append(coming.inner_text())
    kinds = page.locator("#talk li").evaluate_all("items => items.map(({ dataset }) => dataset.type)")
    assert kinds == ["message", "coming"]
    expect(talk(page, "response")).to_have_count(1)
    expect(coming).to_have_count(0)
    whole = talk(page, "response").locator(".words").inner_text()
    assert all(whole.startswith(text) and text != whole for text in grown)
    assert grown == sorted(grown, key=len)
    visitor.is_told(whole.rpartition("\n")[2])

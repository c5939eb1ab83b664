"""The trips as they are joined, in a real browser, on `travelrec serve`."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright

from page_driver import CHROMIUM_ARGUMENTS, Service, Visitor

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def service(tmp_path: Path, chromium_path: Path) -> Iterator[Service]:
    service = Service(tmp_path)
    try:
        service.start()
        yield service
    finally:
        service.close()


def test_trips_are_made_joined_and_shown(service: Service, chromium_path: Path) -> None:
    """A new trip is there, and soon joined; those of others are shown too; a service that went away is come back to."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path, args=CHROMIUM_ARGUMENTS)
        visitor = Visitor(browser.new_context(viewport={"width": 360, "height": 740}), service.url)
        other = Visitor(browser.new_context(), service.url)
        for each in (visitor, other):
            each.page.goto(f"{service.url}/trips")
            expect(each.page.locator("#link")).to_have_text("Live")
            expect(each.page.get_by_text("No trips yet.")).to_be_visible()
        visitor.page.get_by_role("button", name="Make a trip").click()
        for each in (visitor, other):
            expect(each.page.get_by_role("row", name="Joined")).to_have_count(1)
        visitor.page.get_by_role("button", name="Make 20").click()
        for each in (visitor, other):
            expect(each.page.get_by_text("21 joined since you came")).to_be_visible()
            expect(each.page.get_by_role("row", name="Joined")).to_have_count(21)
        assert visitor.overflow_px() == 0
        assert visitor.defects() == []
        service.process.kill()
        expect(visitor.page.locator("#link")).to_have_text("Reconnecting")
        visitor.page.get_by_role("button", name="Make a trip").click()
        expect(visitor.page.get_by_role("alert").filter(has_text="be reached")).to_be_visible()
        service.start()
        expect(visitor.page.locator("#link")).to_have_text("Live")
        visitor.page.get_by_role("button", name="Make a trip").click()
        expect(visitor.page.get_by_text("22 joined since you came")).to_be_visible()
        browser.close()

"""The table of tasks in a real browser, on `travelrec serve` with the offline third party."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from page_driver import CHROMIUM_ARGUMENTS, TRAVELREC, Service, Visitor, answers
from support import free_port
from support.processes import Process

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, chromium_path: Path) -> Iterator[Service]:
    """With a third party that finishes a task after a second."""
    port = free_port()
    third_party = Process([TRAVELREC, "fake-tasks", "--port", str(port), "--work", "1"])
    service = Service(
        tmp_path_factory.mktemp("data"),
        TASKS_PROVIDER_URL=f"http://127.0.0.1:{port}",
        TASKS_POLL_INTERVAL="0.5",
    )
    with third_party:
        answers(f"http://127.0.0.1:{port}/healthz", third_party)
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
        defects = visitor.defects()
        browser.close()
        assert defects == []


def create(page: Page, id_: str) -> None:
    page.get_by_label("New task").fill(id_)
    page.get_by_role("button", name="Create").click()


def test_tasks_are_created_followed_and_deleted(visitor: Visitor) -> None:
    """A new task appears, its state moves by itself, an error shows its message, and each can be deleted."""
    page = visitor.page
    page.goto(f"{visitor.url}/tasks")
    expect(page.get_by_text("No tasks yet.")).to_be_visible()
    create(page, "a/b <i>")
    row = page.get_by_role("row", name="a/b <i>")
    expect(row).to_contain_text("Completed")
    visitor.is_told("Completed")
    create(page, "3")
    expect(page.get_by_role("row", name="3 ")).to_contain_text("Invalid IP range: 192.168.1.256")
    create(page, "3")
    expect(page.get_by_role("alert").filter(has_text="There is a task with this id already")).to_be_visible()
    page.get_by_label("Show").select_option("Error")
    expect(row).to_have_count(0)
    page.get_by_label("Show").select_option("all")
    expect(row).to_be_visible()
    page.get_by_role("button", name="Submit a/b <i> again").click()
    expect(row).to_contain_text("Completed")
    assert visitor.overflow_px() == 0
    page.get_by_role("button", name="Delete a/b <i>").click()
    expect(row).to_have_count(0)
    page.get_by_role("button", name="Delete 3").click()
    expect(page.get_by_text("No tasks yet.")).to_be_visible()

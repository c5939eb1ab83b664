"""What the tests of the page share: the services that it talks to, and a visitor who uses it in Chromium."""

import json
import re
import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from playwright.sync_api import BrowserContext, Locator, Page, Response, expect

from support import Process, free_port
from support.processes import get_status
from support.waiting import until

TRAVELREC = Path(sys.executable).with_name("travelrec")
CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE_MS = 20_000
expect.set_options(timeout=PATIENCE_MS)

CHECKS = Path(__file__).with_name("page_checks.js")


class Model:
    """The offline model as a server of its own, told what to do while it runs."""

    def __init__(self) -> None:
        self.port = free_port()
        self.process = Process([TRAVELREC, "fake-openai", "--port", str(self.port)], name="fake-openai")

    def start(self) -> None:
        """Start it; it answers at once and well."""
        self.process.start()
        answers(f"http://127.0.0.1:{self.port}/stats", self.process)

    def behave(
        self, *, latency_s: float = 0.0, piece_s: float = 0.0, faults: Mapping[str, float] | None = None
    ) -> None:
        """From the next call on: be this slow, before an answer and with its pieces, and fail in these ways."""
        told = {"latency_s": latency_s, "piece_s": piece_s, "faults": dict(faults or {})}
        body = json.dumps(told).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/control", body, method="POST")
        with urllib.request.urlopen(request, timeout=5) as response:
            assert response.status == 200

    def close(self) -> None:
        """End it."""
        self.process.close()


class Service:
    """`travelrec serve` with a data folder that outlives a crash."""

    def __init__(self, data: Path, model: Model | None = None, **env: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        env = {"JOB_LEASE": "1", **env}  # a job that a crash left behind is taken again after a second
        if model is not None:
            env |= {"OPENAI_BASE_URL": f"http://127.0.0.1:{model.port}/v1", "OPENAI_API_KEY": "any"}
        command = [TRAVELREC, "serve", "--port", str(self.port), "--data", data]
        self.process = Process(command, env=env, name="serve")

    def start(self) -> None:
        """Start it, also again after `process.kill()`."""
        self.process.start()
        answers(f"{self.url}/readyz", self.process)

    def close(self) -> None:
        """End it."""
        self.process.close()

    def read(self, uid: str) -> dict[str, object]:
        """The request's state, from the API itself."""
        with urllib.request.urlopen(f"{self.url}/recommendations?uid={uid}", timeout=5) as response:
            return json.load(response)


def answers(url: str, process: Process, timeout_s: float = 30.0) -> None:
    """Wait until a GET of `url` is answered with 200."""
    until(lambda: not process.alive or get_status(url) == 200, timeout_s)
    assert get_status(url) == 200, process.story(f"did not answer at {url}")


class Visitor:
    """Somebody at the page, and what the browser saw on the way."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.context = context
        self.url = url
        self.requested: list[str] = []
        self.console: list[str] = []
        self.errors: list[str] = []
        context.set_default_timeout(PATIENCE_MS)
        context.add_init_script(path=CHECKS)
        context.on("request", lambda request: self.requested.append(request.url))
        context.on("console", lambda said: self.console.append(f"{said.type}: {said.text}"))
        context.on("weberror", lambda error: self.errors.append(str(error.error)))
        self.page: Page = context.new_page()
        self.country: Locator = self.page.get_by_role("combobox", name="Country or territory")
        self.options: Locator = self.page.get_by_role("option")
        self.submit: Locator = self.page.locator("#submit")
        self.request: Locator = self.page.get_by_role("article")
        self.title: Locator = self.request.get_by_role("heading")
        self.ideas: Locator = self.page.locator("#ideas li")
        self.past: Locator = self.page.locator("#past-list a")
        self.notice: Locator = self.page.locator(".notice:not(:empty)")

    def visit(self, path: str = "/") -> Response | None:
        """Open the page, and wait for the countries."""
        with self.page.expect_response("**/countries.json"):
            return self.page.goto(self.url + path)

    def choose(self, country: str, season: str) -> None:
        """Fill in the form."""
        self.country.fill(country)
        self.page.keyboard.press("Escape")
        self.page.get_by_role("radio", name=season).check()

    def ask(self, country: str, season: str) -> str:
        """Send a request, and return its uid once it is accepted."""
        self.choose(country, season)
        self.submit.click()
        expect(self.title).to_have_text(f"{country} in {season.lower()}")
        expect(self.page).to_have_url(re.compile(r"uid="))
        return self.page.locator("#uid").input_value()

    def sees(self, status: str) -> None:
        """Wait until the request on show is in this state."""
        expect(self.request).to_have_attribute("data-status", status)

    def is_told(self, *words: str) -> None:
        """Wait until the live region says all of this to a screen reader."""
        for word in words:
            expect(self.page.get_by_role("status")).to_contain_text(word)

    def focused(self) -> str:
        """The id of what has the focus."""
        return str(self.page.evaluate("document.activeElement.id"))

    def faint(self) -> list[str]:
        """What has less contrast than WCAG 2 AA asks for: texts, and the edges of what can be used."""
        texts = self.page.evaluate("checks.contrasts()")
        edges = [(what, ratio, 3) for what, ratio in self.page.evaluate("checks.edges()")]
        assert len(texts) > 10, "the page has texts"
        assert len(edges) > 3, "the page has a field, seasons and buttons"
        return [
            f"{what!r}: {ratio:.2f} of {needed}" for what, ratio, needed in [*texts, *edges] if ratio < needed
        ]

    def overflow_px(self) -> int:
        """By how much the page is wider than the window."""
        return int(
            self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        )

    def defects(self) -> list[str]:
        """Errors of scripts, requests to other hosts, and complaints of the browser except about bad statuses."""
        foreign = [url for url in self.requested if not url.startswith((self.url + "/", "data:"))]
        complaints = [
            said
            for said in self.console
            if said.startswith(("error", "warning")) and "Failed to load resource" not in said
        ]
        return [*self.errors, *foreign, *complaints]

"""The page's files and headers: what a browser may load, keep and run."""

import base64
import hashlib
import json
import re
from importlib.resources import files

import pytest
from fastapi import FastAPI, Query
from fastapi.testclient import TestClient

from travelrec.kinds.recommendation.places import COUNTRIES
from travelrec_api.page import add_page, as_openapi_3_0

FOREVER = "public, max-age=31536000, immutable"
OWN = sorted(file.name for file in (files("travelrec_api") / "page").iterdir())
SVG_NAMESPACE = "http://www.w3.org/2000/svg"


def made(*, offline_model: bool = True) -> FastAPI:
    app = FastAPI(title="travelrec", docs_url=None, redoc_url=None)
    add_page(app, offline_model=offline_model)

    @app.get("/things")
    def things(name: str | None = None, count: int = Query(3, gt=0, examples=[5])) -> dict[str, str | None]:
        return {"name": name, "count": str(count)}

    return app


@pytest.fixture(scope="module")
def client() -> TestClient:
    return TestClient(made())


def policy(header: str) -> dict[str, list[str]]:
    return {words[0]: words[1:] for part in header.split(";") if (words := part.split())}


@pytest.mark.parametrize("offline_model", [True, False])
def test_the_page_says_whether_the_offline_model_answers(offline_model):
    """The page carries the flag in a meta element when the app is made with it."""
    html = TestClient(made(offline_model=offline_model)).get("/").text
    assert f'<meta name="travelrec-offline-model" content="{str(offline_model).lower()}">' in html


def test_the_page_lets_nothing_inline_run_and_nothing_foreign_load(client):
    """The policy is 'self' only, and the html holds no script, style or handler of its own."""
    for path in ("/", "/chat", "/tasks", "/trips"):
        answer = client.get(path)
        is_strict(answer)


def is_strict(answer) -> None:
    """Asserts that an answer's policy and html are."""
    rules = policy(answer.headers["Content-Security-Policy"])
    assert rules["default-src"] == ["'self'"]
    assert not {"script-src", "style-src", "connect-src", "img-src"} & rules.keys()
    assert rules["frame-ancestors"] == rules["base-uri"] == rules["object-src"] == ["'none'"]
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", answer.text)
    assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", answer.text))


@pytest.mark.parametrize(
    "path",
    ["/", "/chat", "/tasks", "/trips", "/docs", "/docs/openapi.json", "/countries.json", "/static/app.js"],
)
def test_every_answer_is_typed_and_says_nothing_to_others(client, path):
    """Sniffing, framing and referrers are off on every route of the page."""
    headers = client.get(path).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Referrer-Policy"] == "no-referrer"


@pytest.mark.parametrize("name", OWN)
def test_own_files_name_no_other_host(name):
    """No address of another host stands in any file, so nothing can be asked from it."""
    text = (files("travelrec_api") / "page" / name).read_text(encoding="utf-8").replace(SVG_NAMESPACE, "")
    assert not re.search(r"(https?:)?//[\w-]+\.\w", text)


@pytest.mark.parametrize("name", [name for name in OWN if name.endswith(".js")])
def test_scripts_never_make_markup_of_text(name):
    """What the server says is inserted as text only."""
    text = (files("travelrec_api") / "page" / name).read_text(encoding="utf-8")
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text
    )


def test_every_file_that_the_page_names_is_there_and_kept_for_long(client):
    """Each address in html and scripts has the version in it and is answered as never changing."""
    seen, waiting = set(), ["/", "/chat", "/tasks", "/trips"]
    while waiting:
        text = client.get(waiting.pop()).text
        for address in set(re.findall(r"[\"'](/static/[^\"']+)[\"']", text)) - seen:
            seen.add(address)
            waiting.append(address)
            answer = client.get(address)
            assert answer.status_code == 200, address
            assert answer.headers["Cache-Control"] == FOREVER, address
    assert {re.sub(r"/static/|\?.*", "", address) for address in seen} == set(OWN) - {
        "chat.html",
        "index.html",
        "tasks.html",
        "trips.html",
    }


@pytest.mark.parametrize(
    "path", ["/", "/static/app.js", "/static/app.js?v=of-another-release", "/countries.json"]
)
def test_what_has_no_version_is_asked_for_again_and_answered_briefly(client, path):
    """Without this release's version a browser asks each time, and gets 304 when nothing changed."""
    answer = client.get(path)
    assert answer.headers["Cache-Control"] == "no-cache"
    tag = answer.headers["ETag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}'):
        again = client.get(path, headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", tag)
    assert client.get(path, headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    "path",
    ["/static/", "/static/none.js", "/static/index.html", "/static/..%2fpage.py", "/static/%2e%2e/page.py"],
)
def test_no_other_file_can_be_reached(client, path):
    """Only the page's own files are served, whatever the address."""
    assert client.get(path).status_code == 404


def test_countries_are_the_names_that_the_api_takes(client):
    """The list for the field is the one that answers are given in."""
    answer = client.get("/countries.json")
    assert answer.headers["Content-Type"].startswith("application/json")
    assert answer.json() == list(COUNTRIES)


@pytest.mark.parametrize("path", ["/", "/docs", "/countries.json", "/static/style.css"])
def test_head_is_answered_like_get_without_the_body(client, path):
    """HEAD has the same headers as GET."""
    got, headed = client.get(path), client.head(path)
    assert (headed.status_code, headed.content) == (200, b"")
    assert headed.headers == got.headers


def test_the_docs_load_and_run_only_what_is_served_here(client):
    """Swagger UI's files are local, and its start script runs by its hash, not because anything inline may."""
    answer = client.get("/docs")
    rules = policy(answer.headers["Content-Security-Policy"])
    (script,) = re.findall(r"<script>(.*?)</script>", answer.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert rules["default-src"] == ["'self'"]
    assert rules["script-src"] == ["'self'", f"'sha256-{digest}'"]
    assert '"validatorUrl": null' in script
    addresses = re.findall(r'(?:src|href)="([^"]+)"', answer.text)
    assert len(addresses) == 3
    for address in addresses:
        assert address.startswith("/static/")
        assert client.get(address).headers["Cache-Control"] == FOREVER


def test_the_docs_draw_the_schema_in_words_that_swagger_ui_4_knows(client):
    """The API's own schema stays 3.1; the copy for the docs page is 3.0 and means the same."""
    assert client.get("/openapi.json").json()["openapi"].startswith("3.1")
    lowered = client.get("/docs/openapi.json").json()
    assert lowered["openapi"] == "3.0.3"
    name, count = (parameter["schema"] for parameter in lowered["paths"]["/things"]["get"]["parameters"])
    assert (name["type"], name["nullable"]) == ("string", True)
    assert "anyOf" not in name
    assert (count["minimum"], count["exclusiveMinimum"], count["example"]) == (0, True, 5)


def test_names_and_examples_are_not_taken_for_words_of_a_schema():
    """A property called `const` or `examples`, and an example that looks like a schema, stay as they are."""
    schema = {
        "properties": {"const": {"const": "a"}, "examples": {"type": "array", "examples": [[1], [2]]}},
        "default": {"anyOf": [{"type": "null"}]},
        "anyOf": [{"$ref": "#/x"}, {"type": "null"}],
    }
    before = json.dumps(schema)
    assert as_openapi_3_0(schema) == {
        "properties": {"const": {"enum": ["a"]}, "examples": {"type": "array", "example": [1]}},
        "default": {"anyOf": [{"type": "null"}]},
        "anyOf": [{"$ref": "#/x"}],
        "nullable": True,
    }
    assert json.dumps(schema) == before


def test_the_page_is_no_part_of_the_api(client):
    """The API's schema lists none of the page's routes."""
    assert list(client.get("/openapi.json").json()["paths"]) == ["/things"]

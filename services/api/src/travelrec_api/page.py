"""The web page at `/`, the files that it needs, and `/docs` without internet; nothing here is asked from elsewhere."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from pydantic import JsonValue
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from swagger_ui_bundle import swagger_ui_path

from travelrec.kinds.recommendation.places import COUNTRIES

_MEDIA_TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
    "json": "application/json",
}
_SAFE_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_PAGE_POLICY: Final = (
    "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_FOREVER: Final = "public, max-age=31536000, immutable"
_OFFLINE_META: Final = '<meta name="travelrec-offline-model" content="{}">'


@dataclass(frozen=True)
class Asset:
    """A file that was read once, at start."""

    body: bytes
    media_type: str


def add_page(app: FastAPI, *, offline_model: bool) -> None:
    """Add `/`, the other pages, `/static/…`, `/countries.json` and `/docs` to `app`, made with `docs_url=None`."""
    assets = _read_assets()
    version = hashlib.sha256(b"".join(asset.body for asset in assets.values())).hexdigest()[:16]
    statics = _versioned(assets, version)
    html = statics.pop("index.html")
    others = {f"/{name}": statics.pop(f"{name}.html") for name in ("chat", "tasks", "trips")}
    page = html.body.replace(
        _OFFLINE_META.format("false").encode(), _OFFLINE_META.format(str(offline_model).lower()).encode()
    )
    countries = json.dumps(COUNTRIES, ensure_ascii=False).encode()

    async def index(request: Request) -> Response:
        return _answer(request, Asset(page, html.media_type), {"Content-Security-Policy": _PAGE_POLICY})

    async def other(request: Request) -> Response:
        return _answer(
            request, others[request.scope["route"].path], {"Content-Security-Policy": _PAGE_POLICY}
        )

    async def static(request: Request) -> Response:
        asset = statics.get(request.path_params["name"])
        if asset is None:
            raise HTTPException(404)
        # A replica of another release may answer for this one's address: only its own files are kept for long.
        is_ours = request.query_params.get("v") == version
        return _answer(request, asset, {"Cache-Control": _FOREVER} if is_ours else {})

    async def country_names(request: Request) -> Response:
        return _answer(request, Asset(countries, _MEDIA_TYPES["json"]))

    async def favicon(request: Request) -> Response:
        return _answer(request, statics["favicon.svg"])

    async def docs(request: Request) -> Response:
        body = _docs_html(app.title, version)
        return _answer(
            request,
            Asset(body, _MEDIA_TYPES["html"]),
            {"Content-Security-Policy": _docs_policy(body.decode())},
        )

    async def docs_schema(request: Request) -> Response:
        body = json.dumps(as_openapi_3_0(app.openapi()), ensure_ascii=False).encode()
        return _answer(request, Asset(body, _MEDIA_TYPES["json"]))

    routes = {
        "/": index,
        **dict.fromkeys(others, other),
        "/static/{name}": static,
        "/countries.json": country_names,
        "/favicon.ico": favicon,
        "/docs": docs,
        "/docs/openapi.json": docs_schema,
    }
    for path, endpoint in routes.items():
        app.add_api_route(path, endpoint, methods=["GET", "HEAD"], include_in_schema=False)


def _read_assets() -> dict[str, Asset]:
    page = files("travelrec_api") / "page"
    found = {file.name: file.read_bytes() for file in page.iterdir() if file.is_file()}
    for name in ("swagger-ui-bundle.js", "swagger-ui.css"):
        found[name] = (swagger_ui_path / name).read_bytes()
    return {name: Asset(body, _MEDIA_TYPES[name.rpartition(".")[2]]) for name, body in sorted(found.items())}


def _versioned(assets: Mapping[str, Asset], version: str) -> dict[str, Asset]:
    """The files by name, with the version in every address of a file that they name."""
    ours = re.compile(rb'(["\']/static/[\w.-]+)(["\'])')
    return {
        name: Asset(ours.sub(rb"\1?v=" + version.encode() + rb"\2", asset.body), asset.media_type)
        for name, asset in assets.items()
    }


def _answer(request: Request, asset: Asset, headers: Mapping[str, str] | None = None) -> Response:
    """The asset, or 304 when the caller has just this; kept by the browser, but asked for each time by default."""
    etag = f'"{hashlib.sha256(asset.body).hexdigest()[:32]}"'
    all_headers = {"Cache-Control": "no-cache", "ETag": etag, **_SAFE_HEADERS, **(headers or {})}
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("If-None-Match", "").split(",")]
    if etag in known:
        return Response(status_code=304, headers=all_headers)
    return Response(asset.body, media_type=asset.media_type, headers=all_headers)


def _docs_html(title: str, version: str) -> bytes:
    answer = get_swagger_ui_html(
        openapi_url="/docs/openapi.json",
        title=f"{title} API",
        swagger_js_url=f"/static/swagger-ui-bundle.js?v={version}",
        swagger_css_url=f"/static/swagger-ui.css?v={version}",
        swagger_favicon_url=f"/static/favicon.svg?v={version}",
        # The validator is a web service; asking it would tell a stranger where this API is.
        swagger_ui_parameters={"validatorUrl": None, "defaultModelsExpandDepth": 0},
    )
    return bytes(answer.body)


def _docs_policy(html: str) -> str:
    """The page's policy, plus what Swagger UI needs: its own start script (by hash), inline styles, data images."""
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"{_PAGE_POLICY}; script-src 'self' {allowed}; style-src 'self' 'unsafe-inline'; img-src 'self' data:"
    )


def as_openapi_3_0(node: JsonValue) -> JsonValue:
    """An OpenAPI 3.1 document in the words of 3.0, which is what the bundled Swagger UI 4 can draw."""
    if isinstance(node, list):
        return [as_openapi_3_0(item) for item in node]
    if not isinstance(node, dict):
        return node
    node = {key: _inside(key, value) for key, value in node.items()}
    if str(node.get("openapi", "")).startswith("3."):
        node["openapi"] = "3.0.3"
    examples = node.get("examples")
    if isinstance(examples, list) and examples:
        del node["examples"]
        node["example"] = examples[0]
    if "const" in node:
        node["enum"] = [node.pop("const")]
    for word, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(node.get(word), int | float) and not isinstance(node[word], bool):
            node[bound], node[word] = node[word], True
    return _nullable(node)


def _inside(key: str, value: JsonValue) -> JsonValue:
    if key in {"example", "examples", "default", "enum", "const"}:
        return value
    if key in {"properties", "patternProperties", "schemas"} and isinstance(value, dict):
        return {
            name: as_openapi_3_0(schema) for name, schema in value.items()
        }  # names, not words of a schema
    return as_openapi_3_0(value)


def _nullable(node: dict[str, JsonValue]) -> dict[str, JsonValue]:
    choices = node.get("anyOf")
    if not isinstance(choices, list) or {"type": "null"} not in choices:
        return node
    rest = [choice for choice in choices if choice != {"type": "null"}]
    node["nullable"] = True
    if len(rest) == 1 and isinstance(rest[0], dict) and "$ref" not in rest[0]:
        del node["anyOf"]
        return rest[0] | node
    node["anyOf"] = rest
    return node

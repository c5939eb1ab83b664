"""The whole API against its own OpenAPI document, asked by schemathesis."""

import sys
from pathlib import Path

import pytest

from support import free_port

BIN = Path(sys.executable).parent
CONFIG = Path(__file__).with_name("schemathesis.toml")


@pytest.mark.asyncio
@pytest.mark.timeout(120)
async def test_the_api_keeps_what_its_openapi_document_says(new_process, tmp_path):
    """Every check of schemathesis passes on the examples, the borders, made-up and linked requests."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    serve = new_process(
        [BIN / "travelrec", "serve", "--port", str(port), "--data", tmp_path], env={"PREDICTION_LATENCY": "0"}
    )
    await serve.wait_for_http(f"{url}/healthz")
    options = ["--checks", "all", "--max-examples", "15", "--workers", "1", "--no-color"]
    checker = new_process(
        [BIN / "schemathesis", "--config-file", CONFIG, "run", f"{url}/openapi.json", *options],
        name="schemathesis",
    )
    assert await checker.wait(100) == 0, checker.story("found something")
    assert "Stateful" in checker.output()
    assert "not applicable" not in checker.output()

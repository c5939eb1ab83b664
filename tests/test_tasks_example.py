"""The example of docs/tasks.md, from end to end with only curl, as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from support import eventually, free_port

ROOT = Path(__file__).parents[1]
TRAVELREC = Path(sys.executable).with_name("travelrec")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks() -> tuple[list[str], list[tuple[str, str]]]:
    """The commands that are left running, and what is typed then with what it prints."""
    found = FENCE.findall((ROOT / "docs" / "tasks.md").read_text())
    servers = [text.strip() for form, text in found if form == "sh"]
    (typed,) = [text for form, text in found if form == "console"]
    lines = re.split(r"^\$ ", typed, flags=re.MULTILINE)[1:]
    return servers, [tuple(part.partition("\n")[::2]) for part in lines]  # type: ignore[misc]


@pytest.mark.asyncio
@pytest.mark.timeout(120)
async def test_the_example_is_true(new_process, tmp_path) -> None:
    """Every line that is typed prints what is shown; a pause is as long as it takes."""
    servers, typed = blocks()
    ports = {"8090": str(free_port()), "3000": str(free_port())}

    def here(text: str) -> str:
        return re.sub(r"(localhost:|--port )(8090|3000)\b", lambda m: m[1] + ports[m[2]], text)

    for command, port, path in zip(servers, ports.values(), ("/healthz", "/readyz"), strict=True):
        started = here(command).replace("travelrec ", f"{TRAVELREC} ")
        process = new_process(["bash", "-c", f"exec env {started}"], cwd=tmp_path)
        await process.wait_for_http(f"http://localhost:{port}{path}")

    def prints(command: str, shown: str) -> bool:
        done = subprocess.run(
            ["bash", "-c", here(command).replace("curl ", "curl -s ")],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        assert done.stdout.strip() == shown.strip()
        return True

    assert sum(command.startswith("curl") for command, _ in typed) >= 6
    pausing = False
    for command, shown in typed:
        if command.startswith("sleep"):
            pausing = True
        elif pausing:
            await eventually(lambda c=command, s=shown: prints(c, s), 60)
            pausing = False
        else:
            prints(command, shown)

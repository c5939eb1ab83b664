"""`travelrec chat talk` on `travelrec serve` with an offline model that the test steers."""

import json
import subprocess
import urllib.request
from pathlib import Path

import pytest

from page_driver import TRAVELREC, Model, Service

pytestmark = pytest.mark.timeout(120)


def read_history(service: Service) -> list[dict[str, str]]:
    with urllib.request.urlopen(f"{service.url}/chat/dora/messages?token=any", timeout=10) as response:
        return json.load(response)


def test_lines_are_answered_once_and_in_order_over_a_killed_service(tmp_path: Path) -> None:
    """What is on its way as the service is killed is sent again; the talk ends with the last answer."""
    model = Model()
    service = Service(tmp_path / "data", model)
    try:
        model.start()
        model.behave(latency_s=600)
        service.start()
        command = [TRAVELREC, "chat", "talk", "dora", "--url", service.url]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as talk:
            assert talk.stdin is not None
            assert talk.stderr is not None
            talk.stdin.write("one\n\ntwo\n")
            talk.stdin.flush()
            assert talk.stderr.readline() == "connected\n"
            assert talk.stderr.readline() == "sent, waiting for the answer\n"
            service.process.kill()
            assert talk.stderr.readline().startswith("no connection")
            model.behave()
            service.start()
            output, _ = talk.communicate(timeout=60)
        entries = read_history(service)
        assert [entry["type"] for entry in entries] == ["message", "response"] * 2
        assert [entry["content"] for entry in entries[::2]] == ["one", "two"]
        told = " ".join(output.split())
        assert told == " ".join(" ".join(entry["content"] for entry in entries[1::2]).split())
        assert talk.returncode == 0
    finally:
        service.close()
        model.close()

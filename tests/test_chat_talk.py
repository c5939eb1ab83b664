"""`travelrec chat talk` on `travelrec serve` with an offline model that the test steers."""

import json
import os
import pty
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
            assert talk.stderr.readline().startswith("no connection to http://127.0.0.1:")
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


def test_an_error_that_is_heard_again_is_not_the_next_messages(tmp_path: Path) -> None:
    """A line failed, the next one is on its way as the service is killed: its answer is waited for, and shown."""
    model = Model()
    service = Service(tmp_path / "data", model)
    try:
        model.start()
        model.behave(faults={"refusal": 1.0})
        service.start()
        command = [TRAVELREC, "chat", "talk", "dora", "--url", service.url]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as talk:
            assert talk.stdin is not None
            assert talk.stderr is not None
            told = talk.stderr
            talk.stdin.write("one\n")
            talk.stdin.flush()
            assert [told.readline() for _ in range(2)] == ["connected\n", "sent, waiting for the answer\n"]
            assert told.readline() == "not answered: Service temporarily unavailable\n"
            model.behave(latency_s=600)
            talk.stdin.write("two\n")
            talk.stdin.flush()
            assert told.readline() == "sent, waiting for the answer\n"
            service.process.kill()
            model.behave()
            service.start()
            output, errors = talk.communicate(timeout=60)
        assert "not answered" not in errors
        entries = read_history(service)
        assert [entry["content"] for entry in entries[:-1]] == ["one", "two"]
        assert output.split() == entries[-1]["content"].split()
        assert talk.returncode == 0
    finally:
        service.close()
        model.close()


def test_a_terminal_shows_an_answer_while_it_is_made(tmp_path: Path) -> None:
    """What a killed service had begun is left off; the answer is then there once, and grew."""
    model = Model()
    service = Service(tmp_path / "data", model)
    ours, theirs = pty.openpty()
    try:
        model.start()
        model.behave(piece_s=0.5)
        service.start()
        command = [TRAVELREC, "chat", "talk", "dora", "--url", service.url]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=theirs, text=True) as talk:
            os.close(theirs)
            assert talk.stdin is not None
            talk.stdin.write("one\n")
            talk.stdin.close()
            reads = [os.read(ours, 4096).decode() for _ in range(2)]
            model.behave()
            service.process.kill()
            service.start()
            while piece := read(ours):
                reads.append(piece)
        answer = read_history(service)[-1]["content"]
        begun, ended, rest = "".join(reads).partition(" …")
        assert ended
        assert begun != answer
        assert answer.startswith(begun)
        assert rest.split() == answer.split()
        assert talk.returncode == 0
    finally:
        os.close(ours)
        service.close()
        model.close()


def read(terminal: int) -> str:
    """What is written next; nothing when nobody writes any more."""
    try:
        return os.read(terminal, 4096).decode()
    except OSError:
        return ""

"""The messages between processes: what goes in comes out, and what nobody here wrote is refused."""

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from travelrec.errors import Undecodable
from travelrec.job import Job, Status, Try, new_uid
from travelrec.wire import (
    JOBS_TOPIC,
    VERSION,
    Message,
    Signal,
    dead_letter_topic,
    decode_job,
    decode_signals,
    encode_dead_letter,
    encode_job,
    encode_signals,
)

HEADERS = {"x-request-id": "r-1", "traceparent": "00-ab-cd-01", "ü": "ö"}


def job(**changes: object) -> Job:
    given: dict[str, object] = {"headers": HEADERS, **changes}
    return Job(new_uid(), "recommendation", {"country": "Côte d'Ivoire", "season": "winter"}, 1.5, **given)  # type: ignore[arg-type]


def message(**body: object) -> Message:
    return Message(json.dumps(body).encode())


def test_job_message_names_the_job() -> None:
    """The uid comes out as it went in, and the headers travel along; there is no key, so any partition will do."""
    sent = job()
    encoded = encode_job(sent)
    assert decode_job(encoded) == sent.uid
    assert (dict(encoded.headers), encoded.key) == (HEADERS, None)


def test_job_message_is_public() -> None:
    """The format is JSON with a version, a uid and a kind, and no parameters: the store has them."""
    sent = job()
    assert json.loads(encode_job(sent).value) == {"v": VERSION, "uid": sent.uid, "kind": "recommendation"}


def test_unknown_fields_are_ignored() -> None:
    """A release that adds a field is understood by this one."""
    uid = new_uid()
    assert decode_job(message(v=VERSION, uid=uid, kind="later", priority=3)) == uid
    signals = json.dumps({"v": VERSION, "ended": [[uid, "failed"]], "from": "x"}).encode()
    assert decode_signals(signals) == [Signal(uid, Status.FAILED)]


@pytest.mark.parametrize("version", [VERSION + 1, 0, -1, "1", None, [], {}])
def test_foreign_version_is_refused(version: object) -> None:
    """What another version wrote is not guessed at, and the error names both versions."""
    with pytest.raises(Undecodable, match=f"reads {VERSION}"):
        decode_job(message(v=version, uid=new_uid()))
    with pytest.raises(Undecodable, match=f"reads {VERSION}"):
        decode_signals(json.dumps({"v": version, "ended": []}).encode())


def test_missing_version_is_refused() -> None:
    """JSON of somebody else, on our topic, is refused."""
    with pytest.raises(Undecodable):
        decode_job(message(uid=new_uid()))


@pytest.mark.parametrize("uid", [None, 7, "", "x" * 32, ["0" * 32], {"a": 1}, "0" * 31])
def test_job_message_without_a_uid_is_refused(uid: object) -> None:
    """Something else in the uid's place never reaches the store."""
    with pytest.raises(Undecodable):
        decode_job(message(v=VERSION, uid=uid))


def test_signals_come_out_in_order() -> None:
    """Many signals in one message keep their order; none is one as well."""
    sent = [Signal(new_uid(), status) for status in Status]
    assert decode_signals(encode_signals(sent)) == sent
    assert decode_signals(encode_signals([])) == []


def test_a_signal_carries_the_span_that_sent_it() -> None:
    """Traces travel beside the list, which older readers read as before."""
    traced, other = Signal("a" * 32, Status.FAILED, "00-aa-01"), Signal("b" * 32, Status.COMPLETED)
    value = encode_signals([traced, other])
    assert decode_signals(value) == [traced, other]
    assert json.loads(value)["ended"] == [[traced.uid, "failed"], [other.uid, "completed"]]


@pytest.mark.parametrize(
    "ended", [None, 7, "x", {}, [7], ["ab"], [["u"]], [["u", "lost"]], [["u", []]], [[1, 2, 3]]]
)
def test_signals_in_another_shape_are_refused(ended: object) -> None:
    """A list of pairs of a uid and a status, or nothing."""
    with pytest.raises(Undecodable):
        decode_signals(json.dumps({"v": VERSION, "ended": ended}).encode())


DEEP = st.integers(1, 5).map(lambda n: b"[" * 10**n)
json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["v", "uid", "ended", "x"]), inner),
).map(lambda value: json.dumps(value).encode())
ours = st.fixed_dictionaries(
    {"v": st.just(VERSION), "uid": st.text(), "ended": st.lists(st.lists(st.text()))}
)


@given(st.binary() | json_values | DEEP | ours.map(lambda body: json.dumps(body).encode()))
def test_garbage_only_ever_raises_undecodable(value: bytes) -> None:
    """Whatever bytes come, they are decoded or refused: nothing else may stop a consumer."""
    for decode in (lambda: decode_job(Message(value)), lambda: decode_signals(value)):
        with suppress(Undecodable):
            decode()


def test_why_it_is_refused_fits_a_header() -> None:
    """The reason goes into a header of the dead letter: it is one short line, whatever was sent."""
    with pytest.raises(Undecodable) as refused:
        decode_job(message(v="x\n" * 10**6))
    assert len(str(refused.value)) < 100
    assert "\n" not in str(refused.value)


def test_dead_letter_tells_the_whole_story() -> None:
    """The copy of a failed job has what was asked, every attempt with its reason, and the headers."""
    failed = job(
        status=Status.FAILED,
        error="Model refused",
        message="No.",
        tries=(Try(2.0, "Model timeout", "Too late."), Try(3.0, "Model refused", "No.")),
    )
    copy = encode_dead_letter(failed)
    assert dict(copy.headers) == HEADERS
    assert json.loads(copy.value) == {
        "v": VERSION,
        "uid": failed.uid,
        "kind": "recommendation",
        "params": {"country": "Côte d'Ivoire", "season": "winter"},
        "created_at": 1.5,
        "error": "Model refused",
        "message": "No.",
        "tries": [
            {"at": 2.0, "error": "Model timeout", "message": "Too late."},
            {"at": 3.0, "error": "Model refused", "message": "No."},
        ],
    }


def test_dead_letter_names_its_job() -> None:
    """A dead letter can be replayed: its uid is where a job message has it."""
    failed = job(status=Status.FAILED)
    assert decode_job(encode_dead_letter(failed)) == failed.uid


def test_dead_letters_have_a_topic_of_their_own() -> None:
    """The name is that of the topic and a suffix."""
    assert dead_letter_topic(JOBS_TOPIC) == "travelrec.jobs.dead-letter"

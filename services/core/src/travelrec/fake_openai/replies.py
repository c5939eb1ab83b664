"""An `Answer` in the shape of either API, as the bytes that go out; pure."""

import json
from collections.abc import Iterator

from travelrec.fake_openai.answers import Answer
from travelrec.fake_openai.asks import Ask

_FINGERPRINT = "fp_offline_sample"
_PIECE_CHARS = 24


def chat_reply(ask: Ask, said: Answer, id_: str, created: int) -> bytes:
    """Return the body of a chat completion."""
    content = said.text if said.refusal is None else None
    message = {"role": "assistant", "content": content, "refusal": said.refusal}
    return json.dumps(
        {
            "id": f"chatcmpl-{id_}",
            "object": "chat.completion",
            "created": created,
            "model": ask.model,
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": said.finish}],
            "usage": _chat_usage(ask, said),
            "service_tier": "default",
            "system_fingerprint": _FINGERPRINT,
        }
    ).encode()


def chat_events(ask: Ask, said: Answer, id_: str, created: int) -> Iterator[bytes]:
    """Return the server-sent events of a streamed chat completion."""
    common = {
        "id": f"chatcmpl-{id_}",
        "object": "chat.completion.chunk",
        "created": created,
        "model": ask.model,
        "service_tier": "default",
        "system_fingerprint": _FINGERPRINT,
    }
    usage: dict[str, object] = {"usage": None} if ask.include_usage else {}

    def event(delta: dict[str, object], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return _event({**common, "choices": [choice], **usage})

    yield event({"role": "assistant", "content": "", "refusal": None})
    name, text = ("content", said.text) if said.refusal is None else ("refusal", said.refusal)
    for at in range(0, len(text), _PIECE_CHARS):
        yield event({name: text[at : at + _PIECE_CHARS]})
    yield event({}, said.finish)
    if ask.include_usage:
        yield _event({**common, "choices": [], "usage": _chat_usage(ask, said)})
    yield b"data: [DONE]\n\n"


def response_reply(ask: Ask, said: Answer, id_: str, created: int) -> bytes:
    """Return the body of the Responses API."""
    reason = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(said.finish)
    status = "completed" if reason is None else "incomplete"
    part: dict[str, object] = {"type": "output_text", "text": said.text, "annotations": [], "logprobs": []}
    if said.refusal is not None:
        part = {"type": "refusal", "refusal": said.refusal}
    message = {
        "type": "message",
        "id": f"msg_{id_}",
        "status": status,
        "role": "assistant",
        "content": [part],
    }
    return json.dumps(
        {
            "id": f"resp_{id_}",
            "object": "response",
            "created_at": created,
            "status": status,
            "error": None,
            "incomplete_details": None if reason is None else {"reason": reason},
            "instructions": None,
            "max_output_tokens": ask.max_tokens,
            "metadata": {},
            "model": ask.model,
            "output": [message],
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "temperature": 1.0,
            "tool_choice": "auto",
            "tools": [],
            "top_p": 1.0,
            "truncation": "disabled",
            "usage": {
                "input_tokens": ask.prompt_tokens,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": said.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": ask.prompt_tokens + said.completion_tokens,
            },
        }
    ).encode()


def _chat_usage(ask: Ask, said: Answer) -> dict[str, object]:
    return {
        "prompt_tokens": ask.prompt_tokens,
        "completion_tokens": said.completion_tokens,
        "total_tokens": ask.prompt_tokens + said.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


def _event(chunk: dict[str, object]) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"

"""What the offline model answers to an `Ask`, well or with a fault; pure."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from zlib import crc32

from travelrec.fake_openai.asks import Ask, tokens_in
from travelrec.fake_openai.samples import sample_of
from travelrec.fake_openai.suggestions import suggestions, trip_in

Finish = Literal["stop", "length", "content_filter"]
_THREE = 3
_CHARS_PER_TOKEN = 4
_MARKUP = "# **{}**\n\n- <b>bold</b> and a [link](https://example.com)"
_CHATTER = (
    "Hello from the offline sample model! I read your message of {} characters; a real model would plan the trip,"
    " and I would start with a local market.",
    "This is the offline sample model, always packed and ready. Your message has {} characters; a museum, an old"
    " town and a good lunch go with any of them.",
    "Thank you for your {} characters! I am only the offline sample model, so my advice is short: walk a little,"
    " eat well, and talk to people.",
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model says, before it is put into the shape of either API."""

    text: str
    finish: Finish
    refusal: str | None
    completion_tokens: int


def answer(ask: Ask, seed: int, fault: str | None) -> Answer:
    """Return the same for the same arguments, in whatever order they come."""
    if fault == "refusal":
        refusal = "I'm sorry, but I can't help with that. This is a sample refusal of the offline model."
        return Answer("", "stop", refusal, tokens_in(refusal))
    if fault == "content-filter":
        return Answer("", "content_filter", None, 1)
    text = _text(ask, seed, fault)
    finish: Finish = "stop"
    if fault == "length":
        text, finish = text[: len(text) // 2], "length"
    if ask.max_tokens is not None and tokens_in(text) > ask.max_tokens:
        text, finish = text[: (ask.max_tokens - 1) * _CHARS_PER_TOKEN], "length"
    return Answer(text, finish, None, tokens_in(text))


def _text(ask: Ask, seed: int, fault: str | None) -> str:
    value = _value(ask, seed)
    if fault is not None:
        value = _spoilt(value, fault)
    if ask.form == "text":
        return value if isinstance(value, str) else json.dumps(value)
    text = json.dumps(value, ensure_ascii=False)
    return f"Sure! Here you go: {text[:-1]}" if fault == "broken-json" else text


def _value(ask: Ask, seed: int) -> object:
    """Return a string for plain chat, else an instance of the schema asked for."""
    prompt = ask.last_user_text
    if ask.form == "text":
        saying = _CHATTER[crc32(f"{seed} {prompt}".encode(errors="replace")) % len(_CHATTER)]
        return saying.format(len(prompt))
    trip = trip_in(prompt)
    if trip is not None and (count := _recommendations_asked(ask.schema)):
        found = suggestions(seed, *trip, count)
        if len(found) == count:
            return {"recommendations": list(found)}
    if ask.schema is None:
        return {"message": "This is the offline sample model; no schema was given."}
    return sample_of(ask.schema)


def _recommendations_asked(schema: Mapping[str, object] | None) -> int:
    """Return how many strings the product's own schema asks for; 0: it is another schema."""
    if schema is None:
        return _THREE
    properties = schema.get("properties")
    if not isinstance(properties, dict) or list(properties) != ["recommendations"]:
        return 0
    array = properties["recommendations"]
    if not isinstance(array, dict) or array.get("type") != "array":
        return 0
    items = array.get("items")
    if isinstance(items, dict) and items.get("type", "string") != "string":
        return 0
    least, most = array.get("minItems"), array.get("maxItems")
    count = max(_THREE, least) if isinstance(least, int) else _THREE
    return min(count, most) if isinstance(most, int) else count


def _spoilt(value: object, fault: str) -> object:
    """Return the value as this fault leaves it; a fault of another kind leaves it whole."""
    if fault == "wrong-schema":
        return {"answer": "This is not the shape that was asked for.", "confidence": 0.5}
    if isinstance(value, dict):
        return {name: _spoilt(each, fault) for name, each in value.items()}
    if isinstance(value, list):
        items = [_spoilt(each, fault) for each in value]
        kept = {"wrong-count": items[:-1], "duplicates": items[:1] * len(items)}
        return kept.get(fault, items)
    if isinstance(value, str):
        return {"empty-strings": "", "markup": _MARKUP.format(value)}.get(fault, value)
    return value

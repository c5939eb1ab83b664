"""What a caller asks for, read from the body of either API; pure."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from travelrec.fake_openai.refusals import Refused

Form = Literal["text", "json_object", "json_schema"]
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_SCHEMAS_TRIED = 20


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, the same for both APIs."""

    model: str
    last_user_text: str
    prompt_tokens: int
    form: Form
    schema: Mapping[str, object] | None
    max_tokens: int | None
    stream: bool
    include_usage: bool


def read_chat(body: bytes) -> Ask:
    """Read the body of POST /v1/chat/completions; raises Refused as the API would."""
    data = _read_json(body)
    texts, last_user_text = _texts(_listed(data, "messages"), "messages")
    form, schema = _form(data.get("response_format"), "response_format", nested=True)
    options = data.get("stream_options")
    return Ask(
        model=_model(data),
        last_user_text=last_user_text,
        prompt_tokens=_tokens_of(texts),
        form=form,
        schema=_schema_in(texts, "messages") if form == "json_object" else schema,
        max_tokens=_max_tokens(data, "max_completion_tokens") or _max_tokens(data, "max_tokens"),
        stream=data.get("stream") is True,
        include_usage=isinstance(options, dict) and options.get("include_usage") is True,
    )


def read_response(body: bytes) -> Ask:
    """Read the body of POST /v1/responses; raises Refused as the API would."""
    data = _read_json(body)
    if data.get("stream") is True:
        raise Refused(400, "The offline model streams chat completions only, not responses.", param="stream")
    given = data.get("input")
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    texts, last_user_text = _texts(_listed({**data, "input": given}, "input"), "input")
    if isinstance(instructions := data.get("instructions"), str):
        texts.append(instructions)
    text = data.get("text")
    asked = text.get("format") if isinstance(text, dict) else None
    form, schema = _form(asked, "text.format", nested=False)
    return Ask(
        model=_model(data),
        last_user_text=last_user_text,
        prompt_tokens=_tokens_of(texts),
        form=form,
        schema=_schema_in(texts, "input") if form == "json_object" else schema,
        max_tokens=_max_tokens(data, "max_output_tokens"),
        stream=False,
        include_usage=False,
    )


def tokens_in(text: str) -> int:
    """Return a plausible number of tokens: four characters each."""
    return len(text) // 4 + 1


def _read_json(body: bytes) -> dict[str, object]:
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "We could not parse the JSON body of your request.") from None
    if not isinstance(data, dict):
        raise Refused(400, "The body of the request is not a JSON object.")
    return data


def _model(data: Mapping[str, object]) -> str:
    model = data.get("model")
    if not isinstance(model, str) or not model:
        raise Refused(400, "You must provide a model parameter.", param="model")
    return model


def _listed(data: Mapping[str, object], name: str) -> list[object]:
    value = data.get(name)
    if value is None:
        raise _missing(name)
    if not isinstance(value, list) or not value:
        raise Refused(400, f"Invalid '{name}': expected a non-empty array.", param=name, code="invalid_type")
    return value


def _texts(messages: list[object], name: str) -> tuple[list[str], str]:
    """Return the text of every message, and that of the user's last one."""
    texts: list[str] = []
    last_user_text = ""
    for place, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            param = f"{name}[{place}].role"
            raise Refused(400, f"Invalid value for '{param}'.", param=param, code="invalid_value")
        text = _text(message.get("content"), f"{name}[{place}].content")
        texts.append(text)
        if message["role"] == "user":
            last_user_text = text
    return texts, last_user_text


def _text(content: object, param: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise Refused(400, f"Invalid type for '{param}'.", param=param, code="invalid_type")
    parts = (part.get("text") for part in content if isinstance(part, dict))
    return "\n".join(part for part in parts if isinstance(part, str))


def _tokens_of(texts: Iterable[str]) -> int:
    per_message, per_request = 4, 3
    return sum(tokens_in(text) + per_message for text in texts) + per_request


def _max_tokens(data: Mapping[str, object], name: str) -> int | None:
    value = data.get(name)
    if value is None:
        return None
    if type(value) is not int or value < 1:
        raise Refused(400, f"Invalid '{name}': expected an integer from 1 on.", param=name)
    return value


def _form(asked: object, param: str, *, nested: bool) -> tuple[Form, Mapping[str, object] | None]:
    """Read `response_format`, or `text.format`, which has the same fields one level higher."""
    if asked is None:
        return "text", None
    kind = asked.get("type") if isinstance(asked, dict) else None
    if not isinstance(asked, dict) or kind not in ("text", "json_object", "json_schema"):
        raise Refused(400, f"Invalid value for '{param}.type'.", param=f"{param}.type", code="invalid_value")
    if kind == "text":
        return "text", None
    if kind == "json_object":
        return "json_object", None
    named: object = asked
    if nested:
        named, param = asked.get("json_schema"), f"{param}.json_schema"
    given = named if isinstance(named, dict) else {}
    name, schema = given.get("name"), given.get("schema")
    if not isinstance(name, str):
        raise _missing(f"{param}.name")
    if not isinstance(schema, dict):
        raise _missing(f"{param}.schema")
    if given.get("strict") is True:
        _check_strict(schema, name)
    return "json_schema", schema


def _missing(param: str) -> Refused:
    message = f"Missing required parameter: '{param}'."
    return Refused(400, message, param=param, code="missing_required_parameter")


def _check_strict(schema: object, name: str) -> None:
    """Refuse what OpenAI's strict mode refuses, so that it shows here and not in production."""
    if isinstance(schema, list):
        for each in schema:
            _check_strict(each, name)
    if not isinstance(schema, dict):
        return
    properties = schema.get("properties")
    if schema.get("type") == "object" or isinstance(properties, dict):
        problem = None
        if schema.get("additionalProperties") is not False:
            problem = "'additionalProperties' is required to be supplied and to be false."
        elif not _requires_all(schema.get("required"), properties):
            problem = (
                "'required' is required to be supplied and to be an array including every key in properties."
            )
        if problem is not None:
            raise Refused(
                400, f"Invalid schema for response_format '{name}': {problem}", param="response_format"
            )
    for key, value in schema.items():
        if key in ("properties", "$defs", "definitions") and isinstance(value, dict):
            _check_strict(list(value.values()), name)
        elif key in ("items", "anyOf", "prefixItems"):
            _check_strict(value, name)


def _requires_all(required: object, properties: object) -> bool:
    names = list(properties) if isinstance(properties, dict) else []
    return (
        isinstance(required, list) and len(required) == len(names) and all(name in required for name in names)
    )


def _schema_in(texts: list[str], param: str) -> Mapping[str, object] | None:
    """Return the JSON schema that a caller of JSON mode has written into the prompt, if any."""
    if not any("json" in text.lower() for text in texts):
        raise Refused(
            400,
            f"'{param}' must contain the word 'json' in some form, to use 'response_format' of type 'json_object'.",
            param=param,
        )
    decoder = json.JSONDecoder()
    for text in texts:
        at = -1
        for _ in range(_SCHEMAS_TRIED):
            at = text.find("{", at + 1)
            if at < 0:
                break
            try:
                found, _end = decoder.raw_decode(text, at)
            except (ValueError, RecursionError):
                continue
            if isinstance(found, dict) and isinstance(found.get("properties"), dict):
                return found
    return None

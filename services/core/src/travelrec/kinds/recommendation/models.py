"""The answer of this kind: three distinct, plain sentences."""

from __future__ import annotations

import re
import unicodedata
from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from travelrec.errors import BrokenOutput
from travelrec.job import Json

COUNT = 3
MAX_CHARS = 400

SCHEMA: dict[str, Json] = {
    "type": "object",
    "properties": {
        "recommendations": {
            "type": "array",
            "items": {"type": "string"},
            "minItems": COUNT,
            "maxItems": COUNT,
        }
    },
    "required": ["recommendations"],
    "additionalProperties": False,
}

_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u2060\ufeff"))
_LEAD = re.compile(r"^\s*(?:[-*•]|\(?\d{1,2}[.)])\s+")
_EMPHASIS = re.compile(r"(\*\*\*|\*\*|__|`)(.+?)\1")
_LIGHT_EMPHASIS = re.compile(r"(?<!\w)([*_])(?=\w)(.+?)(?<=[\w.!?])\1(?!\w)")
_MARKUP = re.compile(r"</?[A-Za-z][^>]*>|\]\(|https?://|^#+\s|[`\x00-\x1f\x7f]|\*\*|__")
_ABBREVIATION = (
    r"(?<![A-Z])(?<!\b[A-Z][a-z])(?<!\b(?:vs|ca))(?<!\b(?:e\.g|i\.e|a\.m|p\.m|Mrs|Ste|Sta|Sto|Pto|Ave))"
    r"(?<!\b(?:incl|Blvd|Univ))(?<!\bapprox)"
)
_SENTENCE_END = re.compile(_ABBREVIATION + r"[.!?…][\"'”)\]]*\s+(?P<next>\w|[\"“])")


class _Recommendations(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    recommendations: list[Annotated[str, StringConstraints(max_length=4 * MAX_CHARS)]]


def read_answer(text: str) -> list[str]:
    """The three recommendations in the model's `text`; raises `BrokenOutput`, whose message the model may be told.

    Leading list marks, emphasis, quotes and stray blanks are taken off rather than paid for a second time.
    """
    try:
        found = _Recommendations.model_validate_json(text).recommendations
    except ValidationError as error:
        raise BrokenOutput("The answer is not JSON of the schema that was asked for.") from error
    if len(found) != COUNT:
        raise BrokenOutput(f"The answer has {len(found)} recommendations instead of {COUNT}.")
    tidy = [_tidy(one) for one in found]
    for one in tidy:
        if not any(map(str.isalpha, one)):
            raise BrokenOutput("A recommendation is empty.")
        if len(one) > MAX_CHARS:
            raise BrokenOutput(f"A recommendation is longer than {MAX_CHARS} characters.")
        if _MARKUP.search(one):
            raise BrokenOutput("A recommendation is not plain text.")
        if any(not end["next"].isalnum() or end["next"].isupper() for end in _SENTENCE_END.finditer(one)):
            raise BrokenOutput("A recommendation has more than one sentence.")
    if len(set(map(_compared, tidy))) != COUNT:
        raise BrokenOutput("Two recommendations are the same.")
    return tidy


def _compared(text: str) -> str:
    """`text` without what a reader does not see a difference in."""
    return unicodedata.normalize("NFC", text).translate(_INVISIBLE).casefold().rstrip(".!?… ")


def _tidy(text: str) -> str:
    text = _EMPHASIS.sub(r"\2", _LEAD.sub("", " ".join(text.split())))
    text = _LIGHT_EMPHASIS.sub(r"\2", text)
    inside = text[1:-1]
    if text[:1] + text[-1:] in {'""', "“”", "''"} and not {'"', "“"} & set(inside):
        text = inside
    return text.strip()

"""Model functions to start from: `PREDICTION_MODEL=travelrec.kinds.prediction.examples:sentiment`, or `…:words`."""

from __future__ import annotations

import json

from travelrec.errors import BrokenOutput
from travelrec.job import Json
from travelrec.ports import Model, Question

INPUT = "The room was spotless and the view over the fjord took our breath away."

_SCHEMA: dict[str, Json] = {
    "type": "object",
    "properties": {"sentiment": {"type": "string", "enum": ["positive", "neutral", "negative"]}},
    "required": ["sentiment"],
    "additionalProperties": False,
}


async def sentiment(text: str, model: Model) -> str:
    """`positive`, `neutral` or `negative`: a function that takes a second argument is given the chat model."""
    asked = Question(
        system="Say whether the author of the text is positive, neutral or negative about its subject.",
        user=text,
        schema_name="sentiment",
        schema=_SCHEMA,
        max_tokens=20,
    )
    answer = await model.ask(asked, timeout_s=30.0)
    try:
        return str(json.loads(answer.text)["sentiment"])
    except (ValueError, LookupError, TypeError) as error:
        raise BrokenOutput("The answer is not JSON of the schema that was asked for.") from error


def words(text: str) -> int:
    """How many words there are: a plain function, which runs in a thread."""
    return len(text.split())

"""What the model is asked: only the canonical names of a country and a season ever get in here."""

from __future__ import annotations

from dataclasses import replace

from travelrec.kinds.recommendation.models import COUNT, MAX_CHARS, SCHEMA
from travelrec.ports import Question

_SYSTEM = (
    "You are a knowledgeable local travel guide. Recommend things to do in the country and season you are given. "
    f"Answer with exactly {COUNT} different recommendations. Each is one complete English sentence of plain text, "
    f"at most {MAX_CHARS // 2} characters, naming a specific place or activity that suits the season there. "
    "No lists, no numbering, no markup, no links."
)


def question(country: str, season: str) -> Question:
    """The question about a country (a common English name) and a season (one of the four)."""
    return Question(
        system=_SYSTEM,
        user=f"Country: {country}\nSeason: {season}",
        schema_name="recommendations",
        schema=SCHEMA,
        max_tokens=500,
    )


def repair(asked: Question, complaint: str) -> Question:
    """The same question again, after an answer that could not be used for the reason in `complaint`."""
    return replace(asked, system=f"{asked.system} An earlier answer could not be used: {complaint}")

"""The country and the season a caller may name, whatever the spelling, and the one name we keep for each."""

import json
from difflib import get_close_matches
from functools import cache, lru_cache
from itertools import islice
from pathlib import Path
from typing import Final
from unicodedata import category, combining, normalize

from travelrec.errors import InvalidInput

MAX_CHARACTERS: Final = 100
ECHOED_CHARACTERS: Final = 40
CODE_LETTERS: Final = 3
SUGGESTIONS: Final = 3
COMPARED_LETTERS: Final = 28  # the cost of looking for near names grows with their length

# names.json is made by services/core/tools/generate_names.py; its order is the order to show.
_DATA: Final = json.loads(Path(__file__).with_name("names.json").read_text(encoding="utf-8"))
_SPELLINGS: Final[dict[str, list[str]]] = _DATA["spellings"]
_AMBIGUOUS: Final[dict[str, list[str]]] = _DATA["ambiguous"]

COUNTRIES: Final[tuple[str, ...]] = tuple(_SPELLINGS)

_SEASONS: Final = {
    "spring": "spring",
    "summer": "summer",
    "autumn": "autumn",
    "fall": "autumn",
    "winter": "winter",
}

# Letters that Unicode does not take apart into a base letter and an accent (0131 is the dotless i), and the
# apostrophes that it takes for letters.
_FOLDED: Final = str.maketrans(
    {"ø": "o", "æ": "ae", "œ": "oe", "đ": "d", "ð": "d", "ł": "l", "þ": "th", "\u0131": "i", "ə": "e"}
    | {"&": " and ", "\u02bb": " ", "\u02bc": " "}
)


def find_country(text: str) -> str:
    """The common English name of the country that `text` names or codes; `InvalidInput` when there is none."""
    _check_length("country", text)
    return _find_country(text)


def find_season(text: str) -> str:
    """`spring`, `summer`, `autumn` or `winter`; `InvalidInput` for anything else."""
    _check_length("season", text)
    season = _SEASONS.get(text.strip().casefold())
    if season is None:
        raise InvalidInput("season", f"Unknown season '{_echo(text)}'. Use spring, summer, autumn or winter.")
    return season


def fold(text: str) -> str:
    """What is left of a name when case, accents, blanks, punctuation, "the" and "St." make no difference.

    Two or three letters are a code, which is one word or spelled out ("U.S."): "AR-E" is a province of
    Argentina, not ARE. The answer is empty when nothing is left to look up.
    """
    if not text.isascii():
        text = normalize("NFKD", normalize("NFKD", text).casefold())
    letters = "".join(map(_letter, text.casefold().translate(_FOLDED)))
    words = [word for word in letters.split() if word != "the"]
    if len(words) > 1:  # alone, ST is São Tomé and Príncipe
        words = ["saint" if word == "st" else word for word in words]
    key = "".join(words)
    is_broken_code = len(key) <= CODE_LETTERS and 1 < len(words) < len(key)
    return "" if is_broken_code else key


def _letter(character: str) -> str:
    """The character when it can tell names apart, nothing for accents and invisible marks, otherwise a blank."""
    if character.isalnum():
        return character
    kind = category(character)
    if combining(character) or kind == "Cf":
        return ""
    # Vowel signs of Indic scripts carry the name; a control character stays, so that nothing is found.
    is_kept = kind in ("Mn", "Mc", "Cc") and not character.isspace()
    return character if is_kept else " "


@lru_cache(maxsize=4096)  # an exact repeat costs one look-up; errors are never kept
def _find_country(text: str) -> str:
    key = fold(text)
    country = _index().get(key)
    if country is None:
        raise InvalidInput("country", f"Unknown country '{_echo(text)}'. {_advice(key)}")
    return country


@cache
def _index() -> dict[str, str]:
    """Every folded spelling and its country; made at the first question, for it takes some 20 ms."""
    import pycountry  # noqa: PLC0415 - a third of that time, which a command that asks nothing need not pay

    index = {fold(name): name for name in COUNTRIES}
    for name, spellings in _SPELLINGS.items():
        for spelling in spellings:
            index[fold(spelling)] = name
    for country in pycountry.countries:
        fields = dict(country)
        # A country newer than names.json is not offered; test_places.py fails until the file is made again.
        if known := index.get(fold(fields["alpha_2"])):
            for field in ("alpha_3", "name", "official_name", "common_name"):
                index.setdefault(fold(fields.get(field, known)), known)
    index.pop("", None)
    return index


@cache
def _ambiguous() -> dict[str, list[str]]:
    return {fold(text): names for text, names in _AMBIGUOUS.items()}


def _advice(key: str) -> str:
    near = _ambiguous().get(key) or _near(key[:COMPARED_LETTERS])
    if not near:
        return "Give a country's name or its ISO 3166 code, such as Canada, CA or CAN."
    return f"Did you mean {', '.join(near[:-1])}{' or ' if near[:-1] else ''}{near[-1]}?"


def _near(key: str) -> list[str]:
    """Up to three countries with a spelling near to `key`, the nearest first."""
    # Several spellings of one country may be near, hence more matches than names.
    matches = get_close_matches(key, _comparable(), n=4 * SUGGESTIONS)
    return list(islice(dict.fromkeys(_index()[match] for match in matches), SUGGESTIONS))


@cache
def _comparable() -> list[str]:
    """The spellings worth comparing; formal ones are near to each other, and cost more than all the rest."""
    lengths = range(CODE_LETTERS + 1, COMPARED_LETTERS + 1)
    informal = (key for key in _index() if "republicof" not in key and "kingdomof" not in key)
    return [key for key in informal if len(key) in lengths and key.isascii()]


def _check_length(field: str, text: str) -> None:
    if len(text) > MAX_CHARACTERS:
        raise InvalidInput(field, f"The {field} is too long: at most {MAX_CHARACTERS} characters.")


def _echo(text: str) -> str:
    """What the caller sent, short and printable, to be said back."""
    seen = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return seen if len(seen) <= ECHOED_CHARACTERS else f"{seen[: ECHOED_CHARACTERS - 1]}…"

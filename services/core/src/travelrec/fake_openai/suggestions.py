"""The offline model's ideas for a country and a season: plainly samples, and true nearly anywhere; pure."""

import random
import re
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType

IDEAS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "spring": (
            "walk through a park or a botanical garden in {place} and see what is in flower this spring",
            "take a guided walk through an old town in {place} on a mild spring morning",
            "buy fresh spring produce at a local market in {place} and make a picnic of it",
            "visit one of the museums of {place} on a rainy spring day",
            "rent a bicycle in {place} and ride along the water in the spring sunshine",
            "look for a spring festival in {place} and stay for the music",
            "try the dishes that cooks in {place} make only in spring",
            "take a short hike in {place} in spring, before the busy months begin",
            "watch birds in a reserve or a park in {place}, which is at its best in spring",
            "join a cooking class in {place} and learn one recipe with spring vegetables",
            "see the street art and the small galleries of {place} on a spring afternoon",
            "take a slow train or bus ride through the spring countryside of {place}",
            "sit outside a café in {place} on one of the first warm days of spring",
            "spend a spring evening at a concert or a play in {place}",
        ),
        "summer": (
            "get up early for a summer market in {place} and have breakfast at one of its stalls",
            "spend a hot summer afternoon in one of the cool museums of {place}",
            "swim in {place} wherever the locals do in summer",
            "watch a late summer sunset over the coast or a lake in {place}",
            "look for an open-air concert or film in {place} on a summer evening",
            "take a boat trip in {place} and enjoy the summer breeze",
            "walk through an old town in {place} in the cool of a summer morning",
            "eat the street food of {place} outdoors on a warm summer night",
            "hike a shaded trail in {place} in summer, with water and a hat",
            "join a summer festival in {place} and learn a step of a local dance",
            "have a picnic with summer fruit in a park in {place}",
            "rent a bicycle in {place} and ride along the water on a summer evening",
            "visit a craft workshop in {place} and try your hand at it for a summer afternoon",
            "see the stars away from the town lights of {place} on a clear summer night",
        ),
        "autumn": (
            "taste what is being harvested in {place} at an autumn market",
            "walk through a park or a forest in {place} and look for the colours of autumn",
            "spend a rainy autumn day in one of the museums of {place}",
            "look for an autumn festival in {place} and try all its food",
            "take a scenic train or bus ride across {place} in the soft autumn light",
            "join a cooking class in {place} and learn a dish for autumn evenings",
            "stroll through an old town in {place} in autumn, once the summer crowds have gone",
            "walk along the coast or a lake in {place} on a breezy autumn day",
            "visit a farm or a producer in {place} at work in autumn",
            "warm up in a café in {place} with a good book on an autumn afternoon",
            "take photographs of the views of {place} on a clear autumn morning",
            "see a play or hear a concert in {place} as the autumn programme begins",
            "go on a food tour in {place} and ask what is best in autumn",
            "browse the bookshops and antique shops of {place} on an autumn weekend",
        ),
        "winter": (
            "go round an indoor market in {place}, where winter brings out the comfort food",
            "spend a winter afternoon in one of the museums of {place}",
            "walk through an old town in {place} on a clear winter morning",
            "try a sauna, a spa or a hot spring in {place}, a fine idea in winter",
            "taste the soups and stews that cooks in {place} make in winter",
            "look for a winter festival in {place} and join the crowd for an evening",
            "take a short guided walk in {place} in winter, on snow if there is any",
            "watch an early winter sunset over the coast or a lake in {place}",
            "book a concert or a play in {place} for a long winter evening",
            "learn to cook one local dish in {place} in a winter cooking class",
            "sit in a café in {place} for a slow winter breakfast",
            "see a park in {place} in the low light of winter",
            "visit a craft workshop in {place} and take home something made by hand this winter",
            "take a scenic train or bus ride across {place} and watch the winter landscape go by",
        ),
    }
)

_NOBODY_LIVES_THERE = frozenset(
    {
        "Antarctica",
        "Bouvet Island",
        "British Indian Ocean Territory",
        "French Southern Territories",
        "Heard and McDonald Islands",
        "South Georgia and the South Sandwich Islands",
        "United States Minor Outlying Islands",
    }
)
_WILD_IDEAS = (
    "ask which guided expeditions go to {place} in {season}",
    "follow the coast of {place} by ship in {season} and watch for seabirds",
    "photograph the {season} light over {place}",
    "read the logbooks of the explorers of {place} before you travel in {season}",
    "find out from a researcher which animals are seen in {place} in {season}",
    "note the sounds and the weather of {place} in a {season} diary",
)

_COUNTRY = re.compile(r"^[ \t]*Country:[ \t]*(\S[^\n]{0,99}?)\s*$", re.MULTILINE)
_SEASON = re.compile(
    r"^[ \t]*Season:[ \t]*(spring|summer|autumn|fall|winter)\b", re.MULTILINE | re.IGNORECASE
)
_TAKES_THE = re.compile(
    r"^(United|Netherlands|Bahamas|Gambia|Philippines|Maldives|Seychelles|Comoros|Isle of|Democratic|Holy See)\b"
    r"|\b(Islands|Republic|Territory|Territories|Emirates)\b"
)


def trip_in(prompt: str) -> tuple[str, str] | None:
    """Return the country and the season that a prompt names on lines of their own, if it names both."""
    country, season = _COUNTRY.search(prompt), _SEASON.search(prompt)
    if country is None or season is None:
        return None
    named = season[1].lower()
    return country[1], "autumn" if named == "fall" else named


@lru_cache(maxsize=4096)
def suggestions(seed: int, country: str, season: str, count: int) -> tuple[str, ...]:
    """Return `count` different sentences, fewer when there are not as many; the same for the same arguments."""
    ideas = _WILD_IDEAS if country in _NOBODY_LIVES_THERE else IDEAS[season]
    place = f"the {country}" if _TAKES_THE.search(country) else country
    chosen = random.Random(f"{seed} {country} {season}".encode(errors="replace")).sample(
        ideas, min(count, len(ideas))
    )
    filled = (idea.replace("{season}", season).replace("{place}", place) for idea in chosen)
    return tuple(f"Offline sample: {each}." for each in filled)

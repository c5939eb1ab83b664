"""Three things to do in a country in a season."""

from travelrec.job import Params

NAME = "recommendation"


def key(params: Params) -> str:
    """Requests of one key have one answer."""
    return f"{NAME}:{params['country']}:{params['season']}"

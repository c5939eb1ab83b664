"""The kinds of job, a folder each; to add one, copy a folder and name it here."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass

from travelrec.job import Json, Params
from travelrec.kinds import recommendation
from travelrec.kinds.recommendation.run import run as run_recommendation
from travelrec.ports import Model
from travelrec.settings import Settings


@dataclass(frozen=True, slots=True)
class Kind:
    """What a worker needs to know of a kind."""

    run: Callable[
        [Params, Model, float], Coroutine[object, object, Mapping[str, Json]]
    ]  # within so many seconds; raises `ModelError`
    key: Callable[[Params], str]  # jobs of one key have one answer
    fresh_s: float  # how long an answer serves later jobs of its key, in seconds


def kinds(settings: Settings) -> Mapping[str, Kind]:
    """Every kind by its public name."""
    return {
        recommendation.NAME: Kind(run_recommendation, recommendation.key, settings.recommendation_cache_ttl_s)
    }

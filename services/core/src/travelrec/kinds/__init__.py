"""The kinds of job, a folder each; to add one, copy a folder and name it here."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass

from travelrec.job import Json, Params
from travelrec.kinds import prediction, recommendation
from travelrec.kinds.prediction.run import Prediction
from travelrec.kinds.recommendation.run import run as run_recommendation
from travelrec.ports import Model
from travelrec.settings import Settings


@dataclass(frozen=True, slots=True)
class Sharing:
    """Jobs of one key have one answer, which serves later jobs of that key for `fresh_s` seconds."""

    key: Callable[[Params], str]
    fresh_s: float


@dataclass(frozen=True, slots=True)
class Kind:
    """What a worker needs to know of a kind."""

    run: Callable[
        [Params, Model, float], Coroutine[object, object, Mapping[str, Json]]
    ]  # within so many seconds; raises `ModelError`
    sharing: Sharing | None = None  # None: each job has an answer of its own
    asks: bool = True  # the chat model, for which its jobs wait in turn


def shared(settings: Settings) -> Mapping[str, Sharing | None]:
    """Every kind by its public name, and which of its jobs share an answer: all that accepting needs to know."""
    return {
        recommendation.NAME: Sharing(recommendation.key, settings.recommendation_cache_ttl_s),
        prediction.NAME: None,
    }


def kinds(settings: Settings) -> Mapping[str, Kind]:
    """Every kind by its public name, ready to run; raises `BadSetting`."""
    predicting = Prediction.named(settings)
    sharing = shared(settings)
    return {
        recommendation.NAME: Kind(run_recommendation, sharing[recommendation.NAME]),
        prediction.NAME: Kind(predicting.run, sharing[prediction.NAME], predicting.asks),
    }

"""The kinds of job, a folder each; to add one, copy a folder and name its `run` here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

from travelrec.job import Json, Params
from travelrec.kinds import recommendation
from travelrec.kinds.recommendation.run import run as run_recommendation
from travelrec.ports import Model

Run: TypeAlias = Callable[[Params, Model, float], Awaitable[Mapping[str, Json]]]

KINDS: Mapping[str, Run] = {recommendation.NAME: run_recommendation}

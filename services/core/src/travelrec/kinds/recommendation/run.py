"""One run of this kind: ask, check, ask once more if need be."""

from __future__ import annotations

import time

from travelrec.errors import BrokenOutput, ModelTimeout
from travelrec.job import Json, Params
from travelrec.kinds.recommendation.models import read_answer
from travelrec.kinds.recommendation.prompt import question, repair
from travelrec.ports import Model


async def run(params: Params, model: Model, timeout_s: float) -> dict[str, Json]:
    """Three things to do in `params["country"]` in `params["season"]`, within `timeout_s`; raises `ModelError`."""
    asked = question(params["country"], params["season"])
    began = time.monotonic()
    answer = await model.ask(asked, timeout_s)
    try:
        return {"recommendations": list(read_answer(answer.text))}
    except BrokenOutput as broken:
        left_s = timeout_s - (time.monotonic() - began)
        if left_s <= 0:
            raise ModelTimeout("No time was left to repair the model's answer.") from broken
        answer = await model.ask(repair(asked, str(broken)), left_s)
        return {"recommendations": list(read_answer(answer.text))}

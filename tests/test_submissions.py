"""Replicas of `submit` share one limit, and what one of them had when it was killed comes all the same."""

import pytest

from support import Mongo
from support.submissions import measured

pytestmark = [pytest.mark.asyncio, pytest.mark.real("mongo"), pytest.mark.timeout(150)]


async def test_three_replicas_share_a_limit_and_one_is_killed(mongo_server: Mongo) -> None:
    """Nothing is lost, nothing comes twice, and together they never send what two of them might.

    The whole of it, with the limit to the letter, is `python -m bench submissions`: on a busy machine calls that were
    sent apart arrive together.
    """
    seen = await measured(mongo_server, rate=20.0, seconds=5.0, kill_after_s=1.5)
    assert (seen.lost, seen.doubles, seen.not_in_progress) == (0, 0, 0)
    assert seen.most_in_a_second <= 30

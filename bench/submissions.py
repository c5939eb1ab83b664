"""Submissions: three replicas of `submit` share a limit of 20 a second for a minute; one is killed after 20 s.

Counted where they arrive, at the third party: the most within any second, the share of the limit that was used within
the minute, and in the end, when there is nothing left to do, tasks that never came and tasks that came twice.
"""

import asyncio

from bench.report import Row, table
from support import Mongo
from support.submissions import measured


def run(rate: float = 20.0, seconds: float = 60.0, rounds: int = 1) -> str:
    """The table."""
    rows = []
    with Mongo() as mongo:
        for number in range(rounds):
            seen = asyncio.run(measured(mongo, rate=rate, seconds=seconds, kill_after_s=seconds / 3))
            rows.append(
                Row(
                    f"{rate:g} a second for {seconds:g} s, run {number + 1}",
                    {
                        "most in any second": str(seen.most_in_a_second),
                        "used": f"{seen.used:.1%}",
                        "lost": str(seen.lost),
                        "double": str(seen.doubles),
                        "sent again, answered once": str(seen.repeats),
                        "not In Progress": str(seen.not_in_progress),
                    },
                )
            )
    return table(rows)

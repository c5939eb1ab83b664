"""The engine keeps its promises in simulated histories, and the simulation would see it if it did not."""

import pytest

from simulation.mutations import LIMIT, MUTATIONS, found_by
from simulation.world import run

SEEDS = 150


def test_nothing_goes_wrong_in_simulated_histories() -> None:
    """Whatever is lost, late, done twice, killed or frozen: each job ends once, as asked, and is not paid for twice."""
    wrong = {seed: violations for seed in range(SEEDS) if (violations := run(seed).violations)}
    again = "\n".join(f"task sim -- --seed {seed} --trace" for seed in wrong)
    assert not wrong, f"run again with:\n{again}"


def test_a_seed_is_one_history() -> None:
    """The same seed tells the same story, so that a failing one can be looked into."""
    assert [run(seed) for seed in (1, 2, 3)] == [run(seed) for seed in (1, 2, 3)]


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_planted_bug_is_found(mutation: str) -> None:
    """Each care that is taken out of the product shows within a bounded number of seeds."""
    assert found_by(mutation) is not None, f"not within {LIMIT} seeds"

"""`python -m simulation`: runs seeds, prints what they were and the first failing one; see `--help`."""

import argparse
import sys
import time
from collections import Counter

from simulation.mutations import MUTATIONS, found_by
from simulation.world import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="task sim --", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2000, help="how many seeds, from --seed on")
    parser.add_argument("--seed", type=int, default=None, help="only this one")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--trace", action="store_true", help="tell each history")
    parser.add_argument("--mutations", action="store_true", help="plant each bug and print what finds it")
    asked = parser.parse_args()
    if asked.mutations:
        return plant()
    seeds = range(asked.first, asked.first + asked.seeds) if asked.seed is None else [asked.seed]
    began, counts, failed = time.monotonic(), Counter[str](), 0
    for seed in seeds:
        outcome = run(seed)
        counts += outcome.counts
        if asked.trace:
            print(*outcome.story, sep="\n")
        if outcome.violations:
            failed += 1
            print(f"seed {seed} (again: task sim -- --seed {seed} --trace):", *outcome.violations, sep="\n  ")
    told = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    print(f"{len(seeds):,} seeds, {failed} failed, {told}, {time.monotonic() - began:.1f} s")
    return 1 if failed else 0


def plant() -> int:
    """A table of the planted bugs: how many seeds it took, and what was seen."""
    results = {name: found_by(name) for name in MUTATIONS}
    print(f"{'planted bug':36} seeds  found by")
    for name, found in results.items():
        print(f"{name:36} {found[0] if found else '-':>5}  {found[1] if found else 'NOT FOUND'}")
    missed = sum(found is None for found in results.values())
    print(f"{len(results) - missed} of {len(results)} found")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

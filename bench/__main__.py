"""`python -m bench [NAME …]`: runs the benchmarks and prints their tables; `bench/RESULTS.md` keeps some."""

import importlib
import sys

NAMES = (
    *("accept", "dispatch", "drain", "engine", "long", "poison", "limit", "memory", "telemetry"),
    *("submissions", "polling", "predictions", "trips", "schedulers", "chat", "chat_faults"),
)


def main() -> None:
    chosen = sys.argv[1:] or NAMES
    unknown = [name for name in chosen if name not in NAMES]
    if unknown:
        sys.exit(f"no benchmark {', '.join(unknown)}; there is {', '.join(NAMES)}")
    for name in chosen:
        module = importlib.import_module(f"bench.{name}")
        print(f"## {name}\n\n{module.__doc__.strip()}\n\n{module.run()}\n", flush=True)


if __name__ == "__main__":
    main()

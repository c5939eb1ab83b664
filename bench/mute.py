"""`travelrec api` whose metrics count nothing, so that what they cost can be seen."""

import sys
from contextlib import AbstractContextManager, nullcontext

import prometheus_client


class Mute:
    """Stands where a counter, gauge or histogram stands."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def labels(self, *_: object) -> "Mute":
        return self

    def inc(self, *_: object) -> None:
        pass

    def observe(self, *_: object) -> None:
        pass

    def set(self, *_: object) -> None:
        pass

    def track_inprogress(self) -> AbstractContextManager[None]:
        return nullcontext()


def main() -> None:
    for name in ("Counter", "Gauge", "Histogram"):
        setattr(prometheus_client, name, Mute)
    from travelrec.cli import main as command

    sys.argv = ["travelrec", "api"]
    command()


if __name__ == "__main__":
    main()

"""What the processes of a deployment say of themselves at one moment, read as Prometheus reads it."""

from collections.abc import Iterable
from dataclasses import dataclass

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

Series = tuple[str, frozenset[tuple[str, str]]]


@dataclass(frozen=True)
class Scrape:
    """Every sample of one process, and which of them may only grow."""

    samples: dict[Series, float]
    growing: frozenset[Series]

    def total(self, name: str, **labels: str) -> float:
        """The sum of the samples of this name with these labels, among others."""
        wanted = labels.items()
        return sum(
            value for (each, has), value in self.samples.items() if each == name and wanted <= set(has)
        )

    def shrunk(self, before: "Scrape") -> list[tuple[Series, float, float]]:
        """What should only grow and has become less, or has gone, since `before`."""
        seen = ((series, before.samples[series], self.samples.get(series, 0.0)) for series in before.growing)
        return [(series, then, now) for series, then, now in seen if now < then]


async def scrape(http: aiohttp.ClientSession, url: str) -> Scrape:
    """What `url`/metrics says."""
    async with http.get(f"{url}/metrics") as response:
        assert response.status == 200
        text = await response.text()
    samples: dict[Series, float] = {}
    growing = set()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            series = sample.name, frozenset(sample.labels.items())
            assert series not in samples, f"{series} is there twice"
            samples[series] = sample.value
            if family.type in ("counter", "histogram"):
                growing.add(series)
    return Scrape(samples, frozenset(growing))


def total(scrapes: Iterable[Scrape], name: str, **labels: str) -> float:
    """The sum over processes."""
    return sum(each.total(name, **labels) for each in scrapes)

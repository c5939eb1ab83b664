"""What a process says on `/metrics`, read for the command line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import aiohttp


@dataclass(frozen=True, slots=True)
class Samples:
    """Name, labels and value of each sample of one scrape."""

    samples: tuple[tuple[str, Mapping[str, str], float], ...] = ()

    def of(self, name: str, **labels: str) -> Iterator[tuple[Mapping[str, str], float]]:
        """The samples of this name that have these labels."""
        for each, has, value in self.samples:
            if each == name and labels.items() <= has.items():
                yield has, value

    def total(self, name: str, **labels: str) -> float:
        """Their sum."""
        return sum(value for _, value in self.of(name, **labels))


async def scraped(http: aiohttp.ClientSession, url: str) -> Samples:
    """What `url`/metrics says; raises as aiohttp does, and `ValueError` for what are no metrics."""
    # it looks for PROMETHEUS_MULTIPROC_DIR when it is imported, which `travelrec api` sets before that
    from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415

    async with http.get(f"{url}/metrics") as response:
        response.raise_for_status()
        text = await response.text()
    return Samples(
        tuple(
            (sample.name, sample.labels, sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name.startswith("travelrec_")
        )
    )

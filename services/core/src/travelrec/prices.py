"""What a model's tokens cost: list prices, in US dollars a million tokens, or what the operator set instead."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

AS_OF = "2026-05"  # when the list was last compared with what providers publish

_SNAPSHOT = re.compile(r"-\d{4}-\d{2}-\d{2}$")  # gpt-4o-mini-2024-07-18 costs what gpt-4o-mini costs
_MILLION = 1e6


class Price(NamedTuple):
    """Dollars a million tokens."""

    input: float
    output: float

    def of(self, input_tokens: int, output_tokens: int) -> float:
        """The dollars of one call."""
        return (input_tokens * self.input + output_tokens * self.output) / _MILLION


LISTED: Mapping[str, Price] = {
    "gpt-4o": Price(2.50, 10.00),
    "gpt-4o-mini": Price(0.15, 0.60),
    "gpt-4.1": Price(2.00, 8.00),
    "gpt-4.1-mini": Price(0.40, 1.60),
    "gpt-4.1-nano": Price(0.10, 0.40),
    "gpt-5": Price(1.25, 10.00),
    "gpt-5-mini": Price(0.25, 2.00),
    "gpt-5-nano": Price(0.05, 0.40),
    "o3": Price(2.00, 8.00),
    "o4-mini": Price(1.10, 4.40),
    "offline-sample": Price(0.0, 0.0),
}


def price_of(model: str, own: Mapping[str, Price]) -> Price | None:
    """What `model` costs: by the operator's `own` prices, else by the list; None where neither knows it."""
    for name in (model, _SNAPSHOT.sub("", model)):
        price = own.get(name) or LISTED.get(name)
        if price is not None:
            return price
    return None


def parse_prices(text: str) -> dict[str, Price]:
    """Reads `NAME=INPUT/OUTPUT,…`; raises `ValueError` that says what is wrong."""
    prices = {}
    for one in filter(None, map(str.strip, text.split(","))):
        name, _, amounts = one.rpartition("=")
        try:
            price = Price(*map(float, amounts.split("/")))
        except (TypeError, ValueError):
            price = Price(math.nan, math.nan)
        if not name or not all(0 <= amount < math.inf for amount in price):
            raise ValueError(f"write NAME=INPUT/OUTPUT,… in dollars a million tokens, not {one!r}")
        prices[name.strip()] = price
    return prices

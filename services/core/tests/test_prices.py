"""What a model's tokens cost."""

import pytest

from travelrec.prices import LISTED, Price, parse_prices, price_of


def test_a_call_costs_what_its_tokens_do() -> None:
    """Dollars a million tokens, input and output apart."""
    assert Price(0.15, 0.60).of(2_000_000, 500_000) == pytest.approx(0.60)


@pytest.mark.parametrize("model", ["gpt-4o-mini", "gpt-4o-mini-2024-07-18"])
def test_a_dated_snapshot_costs_what_its_model_does(model: str) -> None:
    """The list has the models; a snapshot of one is found there."""
    assert price_of(model, {}) == LISTED["gpt-4o-mini"]


def test_an_own_price_wins_and_an_unknown_model_has_none() -> None:
    """What an operator set stands before the list, also for a snapshot alone."""
    own = {"gpt-4o": Price(1.0, 2.0), "gpt-5-2025-08-07": Price(3.0, 4.0)}
    assert price_of("gpt-4o", own) == Price(1.0, 2.0)
    assert price_of("gpt-5-2025-08-07", own) == Price(3.0, 4.0)
    assert price_of("gpt-5", own) == LISTED["gpt-5"]
    assert price_of("llama-of-ours", own) is None


def test_prices_are_read_as_they_are_written() -> None:
    """Names may hold what names of models hold."""
    text = " mistral/large:2 = 2/6, hf=org/model=0/0.5 ,"
    assert parse_prices(text) == {"mistral/large:2": Price(2.0, 6.0), "hf=org/model": Price(0.0, 0.5)}
    assert parse_prices("") == {}


@pytest.mark.parametrize(
    "text", ["gpt-4o", "gpt-4o=1", "gpt-4o=1/2/3", "=1/2", "m=-1/2", "m=nan/1", "m=1/inf", "m=a/b"]
)
def test_what_is_no_price_is_refused(text: str) -> None:
    """The message shows the form and what is not of it."""
    with pytest.raises(ValueError, match="NAME=INPUT/OUTPUT"):
        parse_prices(text)

"""What is shown of a text, whole or not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from travelrec.chat.message import plain

TEXTS = st.text(st.one_of(st.sampled_from("ab \n\r\t\x00\x85\u2028\ud83c🏝"), st.characters()))


@given(TEXTS, st.integers(0, 50))
def test_a_beginning_stays_a_beginning(text: str, length: int) -> None:
    """What is told of an answer while it is made is a beginning of what it becomes."""
    assert plain(text).startswith(plain(text[:length]))


@given(TEXTS)
def test_what_is_plain_can_be_sent(text: str) -> None:
    """It has no half of a surrogate pair, and is plain already."""
    shown = plain(text)
    shown.encode()
    assert plain(shown) == shown


@pytest.mark.parametrize(
    ("text", "shown"), [("a\r\nb", "a\nb"), (" a\x1b[2J ", "a[2J"), ("a\rb", "ab"), ("\ud800", "")]
)
def test_controls_are_left_out(text: str, shown: str) -> None:
    """But for tabs and lines."""
    assert plain(text) == shown

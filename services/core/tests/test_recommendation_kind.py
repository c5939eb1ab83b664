"""The kind `recommendation`: what is asked, what is taken for an answer, and what a run does with a bad one."""

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from travelrec.errors import BrokenOutput, ModelBusy, ModelError, ModelTimeout, Refused
from travelrec.kinds.recommendation import models
from travelrec.kinds.recommendation import run as runs
from travelrec.kinds.recommendation.examples import PARAMS, RECOMMENDATIONS
from travelrec.kinds.recommendation.models import COUNT, MAX_CHARS, SCHEMA, read_answer
from travelrec.kinds.recommendation.places import COUNTRIES, find_country, find_season
from travelrec.kinds.recommendation.prompt import question, repair
from travelrec.kinds.recommendation.run import run
from travelrec.ports import Answer, Question


def text_of(*recommendations: object) -> str:
    return json.dumps({"recommendations": list(recommendations)})


def read_one(recommendation: str) -> str:
    """What becomes of one recommendation beside two good ones."""
    return read_answer(text_of(recommendation, *RECOMMENDATIONS[1:]))[0]


# --- what is taken for an answer ----------------------------------------------------------------------


def test_a_good_answer_is_taken_as_it_is() -> None:
    """Three plain sentences come out as they went in."""
    assert read_answer(text_of(*RECOMMENDATIONS)) == RECOMMENDATIONS


@pytest.mark.parametrize(
    ("said", "taken"),
    [
        ("- Ski there.", "Ski there."),
        ("* Ski there.", "Ski there."),
        ("• Ski there.", "Ski there."),
        ("1. Ski there.", "Ski there."),
        ("2) Ski there.", "Ski there."),
        ("(3) Ski there.", "Ski there."),
        ("  Ski \n\t there.  ", "Ski there."),
        ("**Ski** there.", "Ski there."),
        ("***Ski*** there.", "Ski there."),
        ("*Ski* there.", "Ski there."),
        ("__Ski__ `there`.", "Ski there."),
        ("_Ski_ there.", "Ski there."),
        ("*Ski there.*", "Ski there."),
        ('"Ski there."', "Ski there."),
        ("'Ski there.'", "Ski there."),
        ("“Ski there.”", "Ski there."),
        ('1. **"Ski there."**', "Ski there."),
        ("'Don't miss the ice.'", "Don't miss the ice."),
    ],
)
def test_marks_are_taken_off(said: str, taken: str) -> None:
    """List marks, emphasis, quotes around the whole and stray blanks are not worth a second call."""
    assert read_one(said) == taken


@pytest.mark.parametrize(
    "said",
    [
        "2026 is a year to ski there.",
        "3 days are enough for Rome.",
        "See the 5* hotels and the 4* spas.",
        '"Swan Lake" is a ballet to see at the "Bolshoi"',
        "“Frozen” is best seen on the “ice”",
        "Take snake_case and other_names as they are.",
        "Walk the Vieux-Port (it's free) at dawn.",
        "Rent a bike for $10 & ride.",
    ],
)
def test_what_belongs_to_the_sentence_stays(said: str) -> None:
    """Numbers, stars, quotes inside and dashes are the sentence's own."""
    assert read_one(said) == said


@pytest.mark.parametrize(
    "said",
    [
        "Walk up Signal Hill in St. John's at dawn.",
        "Taste teas, e.g. Earl Grey, in London.",
        "See the old town, i.e. Gamla Stan.",
        "Visit the U.S. Capitol in Washington, D.C. on a weekday.",
        "Follow J. R. R. Tolkien through Oxford.",
        "Climb Mt. Fuji with Dr. Sato and Mr. Abe.",
        "Hike 4.5 kilometres for 3.50 Euros.",
        "Have tea with Mrs. Brown near Ste. Anne.",
        "Be there at 9 a.m. Tokyo time, or at 5 p.m. Monday.",
        "Watch Brazil vs. Argentina in a bar.",
        "Stop at No. 7 in Ft. Worth.",
        "See the Musée d'Orsay; it is free on the first Sunday of each month.",
        "Taste wine (incl. Österreich's reds) and cheese.",
        "Walk down Blvd. Édouard to Sto. Ângelo.",
        "Skate!",
    ],
)
def test_an_abbreviation_ends_no_sentence(said: str) -> None:
    """One sentence stays one: abbreviations, initials and decimals have dots too."""
    assert read_one(said) == said


@pytest.mark.parametrize("said", ["Walk Bergen. Ålesund glows.", "See Łódź! Érd is near.", "Go up. Ъgo."])
def test_a_sentence_may_begin_with_any_capital(said: str) -> None:
    """Two of them are two."""
    with pytest.raises(BrokenOutput, match="more than one sentence"):
        read_one(said)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Caf\u00e9s of Nice.", "Cafe\u0301s of Nice."),
        ("Skate!", "Ska\u200bte"),
        ("Why not ski?", "Why not ski…"),
    ],
)
def test_what_looks_the_same_is_the_same(one: str, other: str) -> None:
    """However it is written."""
    with pytest.raises(BrokenOutput, match="are the same"):
        read_answer(json.dumps({"recommendations": [one, other, "See the museum."]}))


EMPTY = "A recommendation is empty."
LONG = f"A recommendation is longer than {MAX_CHARS} characters."
MARKUP = "A recommendation is not plain text."
MANY = "A recommendation has more than one sentence."


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ("", EMPTY),
        (" \n ", EMPTY),
        ('""', EMPTY),
        ("-", EMPTY),
        ("1.", EMPTY),
        ("\u200b", EMPTY),
        ("...", EMPTY),
        ("a" * (MAX_CHARS + 1), LONG),
        ("# Ski there.", MARKUP),
        ("Ski <b>there</b>.", MARKUP),
        ("<script>alert(1)</script> Ski.", MARKUP),
        ("See [this](there).", MARKUP),
        ("See https://example.com first.", MARKUP),
        ("Ski **there.", MARKUP),
        ("Ski `there.", MARKUP),
        ("Ski \u0007 there.", MARKUP),
        ("Ski there. Then eat.", MANY),
        ("Ski there! Eat.", MANY),
        ("Where to? Ski there.", MANY),
        ("Ski there… Then eat.", MANY),
        ('Say "Hello." Then eat.', MANY),
        ("Walk 3 km. It is nice.", MANY),
        ("Ski (there.) Then eat.", MANY),
    ],
)
def test_a_bad_recommendation_is_refused_by_name(said: str, complaint: str) -> None:
    """The complaint says what is wrong, so that the model can be told."""
    with pytest.raises(BrokenOutput) as refused:
        read_one(said)
    assert str(refused.value) == complaint


def test_the_longest_recommendation_is_taken() -> None:
    """The limit itself is within the limit."""
    assert read_one("a" * MAX_CHARS) == "a" * MAX_CHARS


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        "Sure! Here you go:",
        json.dumps(RECOMMENDATIONS),
        text_of(*RECOMMENDATIONS)[:-1],
        "```json\n" + text_of(*RECOMMENDATIONS) + "\n```",
        json.dumps({"recommendations": "Ski there."}),
        json.dumps({"recommendations": RECOMMENDATIONS, "note": "Enjoy!"}),
        text_of(1, 2, 3),
        text_of(None, *RECOMMENDATIONS[1:]),
        text_of("a" * (4 * MAX_CHARS + 1), *RECOMMENDATIONS[1:]),
        "[" * 100_000,
    ],
    ids=lambda text: text[:30],
)
def test_another_shape_is_refused(text: str) -> None:
    """Anything but the one object with the one list of strings."""
    with pytest.raises(BrokenOutput, match="not JSON of the schema"):
        read_answer(text)


@pytest.mark.parametrize("count", [0, 1, 2, 4, 7])
def test_another_number_is_refused(count: int) -> None:
    """Exactly three: the complaint says how many there were."""
    with pytest.raises(BrokenOutput, match=f"has {count} recommendations instead of 3"):
        read_answer(text_of(*(f"Do number {n}." for n in range(count))))


@pytest.mark.parametrize(
    "again", ["Ski there.", "ski THERE.", "Ski there", "Ski there!", "2. **Ski** there.", ' "Ski  there." ']
)
def test_the_same_twice_is_refused(again: str) -> None:
    """Three different ones: case, marks and the last stop make no difference."""
    with pytest.raises(BrokenOutput, match="the same"):
        read_answer(text_of("Ski there.", "Eat there.", again))


@given(st.text() | st.lists(st.text(), min_size=3, max_size=3).map(lambda texts: text_of(*texts)))
def test_whatever_a_model_says_is_three_plain_sentences_or_refused(text: str) -> None:
    """Nothing else comes out, and no other error either."""
    try:
        taken = read_answer(text)
    except BrokenOutput:
        return
    assert len({one.casefold() for one in taken}) == COUNT
    for one in taken:
        assert one == one.strip()
        assert 0 < len(one) <= MAX_CHARS
        assert "\n" not in one


# --- what is asked ------------------------------------------------------------------------------------


def test_the_prompt_names_country_and_season_on_lines_of_their_own() -> None:
    """The user's message has the canonical names and nothing else; the system's message has neither."""
    asked = question("Côte d'Ivoire", "winter")
    assert asked.user == "Country: Côte d'Ivoire\nSeason: winter"
    assert "Ivoire" not in asked.system
    assert asked.schema == SCHEMA


def test_only_canonical_names_come_so_far() -> None:
    """What a caller wrote is read to a known name first, so that no prompt holds what a caller chose."""
    assert find_country("  BRASIL ") == "Brazil"
    assert find_season("Fall") == "autumn"
    assert all("\n" not in name and len(name) < 60 for name in COUNTRIES)


def test_a_repair_tells_what_was_wrong() -> None:
    """The same question, with the complaint in the system's message."""
    asked = question("Canada", "winter")
    again = repair(asked, EMPTY)
    assert again.system == f"{asked.system} An earlier answer could not be used: {EMPTY}"
    assert (again.user, again.schema, again.max_tokens) == (asked.user, asked.schema, asked.max_tokens)


def test_the_examples_are_what_the_kind_takes_and_gives() -> None:
    """Documentation and demo show valid parameters and a valid answer."""
    assert find_country(PARAMS["country"]) == PARAMS["country"]
    assert find_season(PARAMS["season"]) == PARAMS["season"]
    assert read_answer(text_of(*RECOMMENDATIONS)) == RECOMMENDATIONS
    assert models._Recommendations.model_json_schema()["required"] == SCHEMA["required"]


# --- a run --------------------------------------------------------------------------------------------


class Model:
    """Says one text, or raises one error, after the other; keeps what it was asked and in what time."""

    def __init__(self, *says: str | ModelError, takes: Callable[[], None] = lambda: None) -> None:
        self.asked: list[tuple[Question, float]] = []
        self._says = list(says)
        self._takes = takes

    async def ask(self, question: Question, timeout_s: float) -> Answer:
        self.asked.append((question, timeout_s))
        self._takes()
        said = self._says.pop(0)
        if isinstance(said, ModelError):
            raise said
        return Answer(said, "test", 1, 1)


GOOD = text_of(*RECOMMENDATIONS)


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(runs, "time", self)

    def monotonic(self) -> float:
        return self.now

    def passes(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.asyncio
async def test_a_good_answer_takes_one_call() -> None:
    """One question, with all the time there is; the result is the record of the job."""
    model = Model(GOOD)
    assert await run(PARAMS, model, 20.0) == {"recommendations": RECOMMENDATIONS}
    assert model.asked == [(question("Canada", "winter"), 20.0)]


@pytest.mark.asyncio
async def test_a_bad_answer_is_repaired_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is told what was wrong, and has the rest of the time."""
    clock = Clock(monkeypatch)
    model = Model(text_of("Ski."), GOOD, takes=lambda: clock.passes(6))
    assert await run(PARAMS, model, 20.0) == {"recommendations": RECOMMENDATIONS}
    complaint = "The answer has 1 recommendations instead of 3."
    asked = question("Canada", "winter")
    assert model.asked == [(asked, 20.0), (repair(asked, complaint), 14.0)]


@pytest.mark.asyncio
async def test_a_second_bad_answer_is_an_error() -> None:
    """There is one repair, not more: the next try is the job's."""
    model = Model("Sure!", "Sure, again!", GOOD)
    with pytest.raises(BrokenOutput):
        await run(PARAMS, model, 20.0)
    assert len(model.asked) == 2


@pytest.mark.asyncio
async def test_no_repair_without_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that comes at the last moment and is bad is a time-out, not another call."""
    clock = Clock(monkeypatch)
    model = Model("Sure!", GOOD, takes=lambda: clock.passes(20))
    with pytest.raises(ModelTimeout):
        await run(PARAMS, model, 20.0)
    assert len(model.asked) == 1


@pytest.mark.asyncio
@pytest.mark.parametrize("error", [ModelBusy("busy"), Refused("no")])
@pytest.mark.parametrize("says", [[], ["Sure!"]])
async def test_an_error_of_the_model_is_passed_on(error: ModelError, says: list[str]) -> None:
    """It is the job's to decide, on the first call and on the repair."""
    model = Model(*says, error, GOOD)
    with pytest.raises(type(error)) as raised:
        await run(PARAMS, model, 20.0)
    assert raised.value is error
    assert len(model.asked) == len(says) + 1

"""The country and the season a caller may name: every spelling that is taken, and what is said of the rest."""

import json
import runpy
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import pycountry
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from travelrec.errors import InvalidInput
from travelrec.kinds.recommendation import places
from travelrec.kinds.recommendation.places import COUNTRIES, find_country, find_season

NAMES_JSON = Path(places.__file__).with_name("names.json")
GENERATOR = Path(__file__).parents[1] / "tools" / "generate_names.py"
DATA = json.loads(NAMES_JSON.read_text(encoding="utf-8"))
FIELDS = ("alpha_2", "alpha_3", "name", "official_name", "common_name")
ISO = {
    country.alpha_2: [dict(country)[f] for f in FIELDS if f in dict(country)]
    for country in pycountry.countries
}
SPELLINGS = sorted(
    {*COUNTRIES, *(s for group in (*DATA["spellings"].values(), *ISO.values()) for s in group)}
)
LONGEST_MESSAGE = 250

# The index is built at the first question, whichever test asks it.
no_deadline = settings(deadline=None)

TAKEN = {
    "Austria": "Österreich|Osterreich|Oesterreich|AUT",
    "Bolivia": "BO|bol|Plurinational State of Bolivia|Bolivia, Plurinational State of",
    "Bosnia and Herzegovina": "Bosnia & Herzegovina|bosnia-herzegovina|Bosna i Hercegovina|BA",
    "Brazil": "Brasil|BRA|Federative Republic of Brazil",
    "Brunei": "Brunei Darussalam|BN",
    "Canada": "canada|CA|CAN|ca| Canada |\tCANADA\n|Cánada|C.A.",
    "Cape Verde": "Cabo Verde|CPV",
    "Côte d'Ivoire": "cote d'ivoire|Côte d\u2019Ivoire|COTE D IVOIRE|cote-d-ivoire|Cote dIvoire"
    "|Ivory Coast|the Ivory Coast",
    "Curaçao": "Curacao|CW",
    "Czechia": "Czech Republic|the Czech Republic|Česko|cesko|CZE",
    "Democratic Republic of the Congo": "Congo-Kinshasa|Congo - Kinshasa|DR Congo|D.R. Congo|DRC|D.R.C.|CD|COD|Zaire"
    "|Congo, The Democratic Republic of the|Democratic Republic of Congo",
    "Egypt": "مصر|EGY|Misr",
    "England": "ENGLAND ",
    "Eswatini": "Swaziland|SZ",
    "Finland": "Suomi|SUOMI|Republic of Finland",
    "France": "French Republic|fr|FRA",
    "Germany": "Deutschland|Federal Republic of Germany|Germany, Federal Republic of|DE|deu",
    "Greece": "Ελλάδα|ΕΛΛΑΔΑ|ελλαδα|Hellenic Republic|Hellas",
    "Hong Kong": "Hongkong|HK|香港|Hong Kong SAR China",
    "India": "भारत|Bharat|IN",
    "Iran": "Iran, Islamic Republic of|Islamic Republic of Iran|IR",
    "Ireland": "Éire|eire|Republic of Ireland|IE",
    "Japan": "Nippon|日本|JP|jpn",
    "Kosovo": "XK|XKX|Kosova|Republic of Kosovo",
    "Laos": "Lao People's Democratic Republic|LA",
    "Macao": "Macau|MO|澳門",
    "Micronesia": "Micronesia, Federated States of|FM",
    "Moldova": "Moldova, Republic of|Republic of Moldova",
    "Myanmar": "Burma|Myanmar (Burma)|MM",
    "Netherlands": "Holland|The Netherlands|Nederland|NL",
    "North Korea": "Korea, Democratic People's Republic of|DPRK|KP|PRK|Korea (North)",
    "North Macedonia": "Macedonia|MKD",
    "Northern Ireland": "northern ireland",
    "Palestine": "Palestine, State of|State of Palestine|PS|فلسطين",
    "Republic of the Congo": "Congo|the Congo|Republic of Congo|Congo-Brazzaville|CG|COG|Congo, Republic of the",
    "Russia": "Russian Federation|Россия|РОССИЯ|RU",
    "Réunion": "Reunion|La Réunion|RE",
    "Saint Lucia": "St Lucia|St. Lucia|St.Lucia|SAINT LUCIA|LC",
    "Saint Martin": "St. Martin|Saint Martin (French part)|Saint-Martin|MF",
    "Scotland": "scotland|SCOTLAND|Alba",
    "Sint Maarten": "Sint Maarten (Dutch part)|SX|Sint-Maarten",
    "South Korea": "Korea, Republic of|Republic of Korea|the Republic of Korea|KR|대한민국|한국|ROK"
    "|S. Korea|Korea, South",
    "Spain": "España|espana|Kingdom of Spain",
    "Sri Lanka": "ශ්‍රී ලංකාව|இலங்கை|Ceylon",
    "Switzerland": "Schweiz|Suisse|Svizzera|Svizra|CH|Swiss Confederation",
    "Syria": "Syrian Arab Republic|SY",
    "São Tomé and Príncipe": "Sao Tome & Principe|ST|stp",
    "Taiwan": "Taiwan, Province of China|TW|台灣|台湾",
    "Tanzania": "Tanzania, United Republic of|United Republic of Tanzania",
    "Timor-Leste": "East Timor|Timor Leste|TL",
    "Türkiye": "Turkey|Turkiye|TÜRKİYE|t\u00fcrk\u0131ye|TR",
    "United Arab Emirates": "UAE|U.A.E.|the UAE|AE",
    "United Kingdom": "UK|U.K.|Great Britain|Britain|GB|GBR|the United Kingdom of Great Britain & Northern Ireland",
    "United States": "USA|US|U.S.|U.S.A.|U. S. A.|America|the United States of America|UNITED-STATES",
    "Vatican City": "Vatican|Holy See|the Holy See|Holy See (Vatican City State)|VA",
    "Venezuela": "Venezuela, Bolivarian Republic of|VE",
    "Vietnam": "Viet Nam|Việt Nam|VN",
    "Wales": "Cymru",
    "Åland Islands": "Aland|Åland|AX|Aland Islands",
}


def refusal(text: str) -> str:
    with pytest.raises(InvalidInput) as caught:
        find_country(text)
    assert caught.value.field == "country"
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "country"), [(text, country) for country, texts in TAKEN.items() for text in texts.split("|")]
)
def test_everyday_former_local_and_official_names_and_codes_are_taken(text: str, country: str) -> None:
    """A caller's own spelling is answered with the common English name."""
    assert find_country(text) == country


@pytest.mark.parametrize("code", ISO)
def test_everything_iso_3166_says_of_a_country_finds_that_country(code: str) -> None:
    """Both codes and all names in pycountry give one and the same country, which only they give."""
    (country,) = {find_country(spelling) for spelling in ISO[code]}
    assert code in DATA["spellings"][country]


def test_every_spelling_in_the_data_finds_its_country() -> None:
    """No spelling in names.json is lost to another country."""
    found = {
        name: {find_country(spelling) for spelling in (name, *DATA["spellings"][name])} for name in COUNTRIES
    }
    assert found == {name: {name} for name in COUNTRIES}


def test_the_countries_are_iso_3166_kosovo_and_the_four_of_the_united_kingdom() -> None:
    """COUNTRIES holds each place once, in the order a reader looks for it, in plain typography."""
    assert len(COUNTRIES) == len(set(COUNTRIES)) == len(pycountry.countries) + 5
    assert list(COUNTRIES) == sorted(COUNTRIES, key=places.fold)
    assert COUNTRIES[:2] == ("Afghanistan", "Åland Islands")
    assert {"Kosovo", "Scotland", "England", "Wales", "Northern Ireland"} < set(COUNTRIES)
    assert not [name for name in COUNTRIES if "&" in name or "\u2019" in name or "St." in name]


def test_a_code_wins_over_nothing_because_no_spelling_has_two_owners() -> None:
    """Short words that could be a code of one place and a name of another are decided, and stay so."""
    decided = {
        "ST": "São Tomé and Príncipe",
        "Alba": "Scotland",
        "ALB": "Albania",
        "CAR": "Central African Republic",
    }
    decided |= {"Georgia": "Georgia", "IN": "India", "Lao": "Laos", "Saint Martin": "Saint Martin"}
    assert {text: find_country(text) for text in decided} == decided


@pytest.mark.parametrize(
    "text",
    ["California", "Bavaria", "Bayern", "Ontario", "Asia", "Europe", "AR-E", "ES-P", "O", "XX", "ZZZ", "the"],
)
def test_what_is_no_country_is_refused(text: str) -> None:
    """Subdivisions (also by their ISO 3166-2 code), continents and unknown codes are not guessed at."""
    assert refusal(text).startswith(f"Unknown country '{text}'. ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Cnada", "Unknown country 'Cnada'. Did you mean Canada"),
        ("Duetschland", "Unknown country 'Duetschland'. Did you mean Germany"),
        ("the korea", "Unknown country 'the korea'. Did you mean South Korea or North Korea?"),
        (
            "Virgin Islands",
            "Unknown country 'Virgin Islands'. Did you mean British Virgin Islands or United States Virgin Islands?",
        ),
        ("", "Unknown country ''. Give a country's name or its ISO 3166 code, such as Canada, CA or CAN."),
        ("Can\x00ada\x1b[31m", "Unknown country 'Can ada [31m'. "),
        ("x" * 100, "Unknown country 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…'. "),
        ("Canada" + " " * 100, "The country is too long: at most 100 characters."),
    ],
)
def test_a_refusal_says_what_would_be_right(text: str, message: str) -> None:
    """The nearest names are suggested, and what was typed is said back short and harmless."""
    assert refusal(text).startswith(message)


def test_case_and_accents_make_no_difference_to_any_spelling() -> None:
    """Every spelling is found in capitals, small letters, without accents and in any Unicode form."""
    for spelling in SPELLINGS:
        decomposed = unicodedata.normalize("NFD", spelling)
        bare = "".join(character for character in decomposed if not unicodedata.combining(character))
        variants = {
            spelling.upper(),
            spelling.lower(),
            spelling.swapcase(),
            spelling.casefold(),
            decomposed,
            bare,
        }
        assert {find_country(variant) for variant in variants} == {find_country(spelling)}


@no_deadline
@given(st.data())
def test_case_accents_and_blanks_never_change_the_result(data: st.DataObject) -> None:
    """However a spelling is dressed, it is found as the plain one is."""
    spelling = data.draw(st.sampled_from(SPELLINGS))
    blanks = st.text(" \t\n\u00a0\u3000", min_size=1, max_size=2)
    edges = st.text(" \t\n\u00a0\u3000\u200b\ufeff", max_size=3)  # the last two have no width
    dressed = "".join(
        data.draw(blanks)
        if character == " "
        else data.draw(st.sampled_from([character, character.upper(), character.lower()]))
        + (data.draw(st.sampled_from(["", "\u0301"])) if character.isascii() and character.isalpha() else "")
        for character in spelling
    )
    dressed = data.draw(edges) + dressed + data.draw(edges)
    assume(len(dressed) <= places.MAX_CHARACTERS)
    assert find_country(dressed) == find_country(spelling)


@no_deadline
@given(st.text(st.characters(), max_size=120) | st.text("abcdeinorstu .-'&\x00\x1b", max_size=120))
@example("\ufdfa" * 100)
@example("\ud800")
def test_any_text_is_a_country_or_a_short_printable_refusal(text: str) -> None:
    """Nothing else is ever returned or raised, and no message carries what a terminal or a log would obey."""
    for find, values in ((find_country, COUNTRIES), (find_season, ("spring", "summer", "autumn", "winter"))):
        try:
            answer = find(text)
        except InvalidInput as error:
            answer = str(error)
        assert answer in values or (answer.isprintable() and len(answer) <= LONGEST_MESSAGE)


@pytest.mark.parametrize(
    "text", ["iaeonrs" * 14, "the united states of republic islands and kingdoms of", "saint " * 16]
)
def test_a_suggestion_takes_milliseconds_whatever_was_typed(text: str) -> None:
    """The slowest path is bounded: a few ms, with room for a busy machine."""
    refusal(text)
    spent_s = []
    for _ in range(5):
        start = time.perf_counter()
        refusal(text)
        spent_s.append(time.perf_counter() - start)
    assert min(spent_s) < 0.02


@pytest.mark.parametrize(
    ("text", "season"),
    [
        ("winter", "winter"),
        ("SPRING", "spring"),
        (" Summer\n", "summer"),
        ("autumn", "autumn"),
        ("Fall", "autumn"),
    ],
)
def test_the_four_seasons_are_taken_in_any_case(text: str, season: str) -> None:
    """Fall is autumn."""
    assert find_season(text) == season


@pytest.mark.parametrize("text", ["", "monsoon", "win\x00ter", "winter2", "s" * 100])
def test_another_season_is_refused_with_the_four_named(text: str) -> None:
    """The caller learns what would be right."""
    with pytest.raises(InvalidInput, match=r"Use spring, summer, autumn or winter\.$") as caught:
        find_season(text)
    assert caught.value.field == "season"


def test_an_endless_season_is_refused() -> None:
    """Nothing long is looked at or said back."""
    with pytest.raises(InvalidInput, match=r"^The season is too long: at most 100 characters\.$"):
        find_season("winter" + " " * 100)


def test_names_json_is_what_the_generator_makes() -> None:
    """After an upgrade of Babel or pycountry: `uv run python services/core/tools/generate_names.py`."""
    assert runpy.run_path(str(GENERATOR))["render"]() == NAMES_JSON.read_text(encoding="utf-8")


def test_the_generator_refuses_a_spelling_with_two_owners() -> None:
    """A new name that is another country's already stops the generator, which names both."""
    generator = runpy.run_path(str(GENERATOR))
    generator["UNITED_KINGDOM"]["Wales"].append("Deutschland")
    with pytest.raises(SystemExit, match="'deutschland': Germany, Wales"):
        generator["collect"]()


def test_importing_loads_neither_pycountry_nor_babel() -> None:
    """A process that asks for no country pays for none; Babel is for the generator alone."""
    ask = (
        "import sys, travelrec.kinds.recommendation.places as places;"
        "print(*{'babel', 'pycountry'} & {*sys.modules});"
        "places.find_country('CA'); print('babel' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True).stdout
    assert out.split("\n")[:2] == ["", "False"]

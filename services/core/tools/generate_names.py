"""Makes names.json (common English names and other spellings of every country) from CLDR through Babel.

    uv run python services/core/tools/generate_names.py [--check]

Prints nothing and exits 0 when the file is up to date; --check writes nothing and exits 1 when it is not.
"""

import json
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import babel
import pycountry
from babel import Locale, localedata
from babel.languages import get_official_languages

from travelrec.kinds.recommendation import places

TARGET = Path(places.__file__).with_name("names.json")
LICENCE = Path(babel.__file__).parent / "locale-data" / "LICENSE.unicode"

# Where CLDR's English name is not the one people use.
ENGLISH = {
    "CD": "Democratic Republic of the Congo",
    "CG": "Republic of the Congo",
    "GS": "South Georgia and the South Sandwich Islands",
    "HK": "Hong Kong",
    "MM": "Myanmar",
    "MO": "Macao",
    "PS": "Palestine",
    "UM": "United States Minor Outlying Islands",
    "VC": "Saint Vincent and the Grenadines",
    "VI": "United States Virgin Islands",
}

# Everyday, former, romanised and missing official names, which neither CLDR nor pycountry has.
ALSO = {
    "AE": "UAE, Emirates, The Emirates, Emirats arabes unis, الإمارات",
    "AM": "Hayastan",
    "AT": "Oesterreich",
    "AU": "Commonwealth of Australia",
    "AX": "Ahvenanmaa",
    "BA": "Bosnia, BiH, Bosnia-Herzegovina",
    "BF": "Upper Volta",
    "BJ": "Dahomey",
    "BN": "Negara Brunei Darussalam",
    "BT": "Druk Yul",
    "BY": "Byelorussia, Belorussia",
    "BZ": "British Honduras",
    "CC": "Cocos Islands, Keeling Islands",
    "CD": "DR Congo, Congo DR, DRC, D.R. Congo, RDC, Democratic Republic of Congo, Zaire, Zaïre, "
    "République démocratique du Congo",
    "CF": "CAR",
    "CG": "Republic of Congo, Congo (Republic of), Congo Republic, République du Congo",
    "CH": "Confoederatio Helvetica",
    "CI": "Ivory Coast",
    "CN": "PRC, Mainland China, Zhongguo, 中华人民共和国",
    "CY": "Kypros",
    "CZ": "Česká republika",
    "DE": "Bundesrepublik Deutschland",
    "EG": "Misr",
    "ET": "Abyssinia, Ityopya",
    "FJ": "Viti",
    "FK": "Falklands, Malvinas, Islas Malvinas",
    "FM": "FSM",
    "FO": "Faeroe Islands, Faroes",
    "FR": "République française",
    "GB": "UK, Great Britain and Northern Ireland, Great Britain, Britain",
    "GE": "Sakartvelo",
    "GF": "Guyane, French Guyana",
    "GR": "Ελλάς, Hellas, Ellada, Ellas",
    "GS": "South Georgia",
    "GU": "Guåhan",
    "HK": "香港",
    "IE": "Republic of Ireland",
    "IN": "Bharat, Republic of Bharat",
    "IR": "Persia",
    "IS": "Lýðveldið Ísland",
    "JP": "Nippon, Nihon, Nippon-koku, 日本国, にほん, にっぽん",
    "KG": "Kirghizia, Kirgizstan",
    "KH": "Kampuchea",
    "KP": "DPRK, N. Korea, Korea (North), Choson, 조선",
    "KR": "ROK, S. Korea, Korea (South), Hanguk, Daehan Minguk, 한국",
    "KZ": "Qazaqstan",
    "LA": "Lao PDR, Lao",
    "LK": "Ceylon",
    "LY": "State of Libya",
    "MD": "Moldavia",
    "MH": "Aorōkin M̧ajeļ",
    "MK": "Macedonia, FYROM, Former Yugoslav Republic of Macedonia, Republic of Macedonia",
    "MM": "Burma, Republic of the Union of Myanmar",
    "MO": "Macau, 澳門, 澳门",
    "MX": "Estados Unidos Mexicanos",
    "NL": "Holland",
    "NR": "Naoero",
    "PS": "Palestinian Territory, State of Palestine, فلسطين",
    "PW": "Belau",
    "RE": "Reunion Island",
    "RU": "Rossiya",
    "SA": "KSA, السعودية",
    "ST": "Sao Tome",
    "SY": "Suriyah",
    "SZ": "Swaziland",
    "TC": "Turks and Caicos",
    "TH": "Siam, Prathet Thai, ประเทศไทย",
    "TL": "East Timor, Timor Lorosa'e",
    "TR": "Turkey, Republic of Turkey",
    "TW": "臺灣, Chinese Taipei, Formosa",
    "UA": "Ukraina",
    "US": "America",
    "VA": "Vatican, Holy See, Vatican City State, Stato della Città del Vaticano",
    "VC": "Saint Vincent",
    "VG": "BVI, Virgin Islands (British)",
    "VI": "USVI, US Virgin Islands, Virgin Islands (US)",
    "WS": "Western Samoa",
    "XK": "XKX, Kosova, Republic of Kosovo",
    "ZA": "RSA, Suid-Afrika",
    "ZW": "Rhodesia, Southern Rhodesia",
}

# The constituent countries of the United Kingdom, in their own right.
UNITED_KINGDOM = {
    "England": [],
    "Northern Ireland": ["Tuaisceart Éireann"],
    "Scotland": ["Alba"],
    "Wales": ["Cymru"],
}

# Names of more than one country: refused, with all of them suggested.
AMBIGUOUS = {
    "Korea": ["South Korea", "North Korea"],
    "Virgin Islands": ["British Virgin Islands", "United States Virgin Islands"],
}

BEYOND_ISO = ("XK",)  # a code that ISO 3166-1 leaves to its users, and CLDR and others use


def main() -> int:
    """Write names.json, or with --check only say whether it is what would be written."""
    wanted = render()
    if "--check" in sys.argv[1:]:
        return int(TARGET.read_text(encoding="utf-8") != wanted)
    TARGET.write_text(wanted, encoding="utf-8")
    return 0


def render() -> str:
    """The text of names.json, one country a line so that a new CLDR release gives a readable diff."""
    spellings = sorted(collect().items(), key=lambda entry: places.fold(entry[0]))
    lines = ",\n".join(f"  {_json(name)}: {_json(others)}" for name, others in spellings)
    return (
        f'{{\n "notice": {_json(LICENCE.read_text(encoding="utf-8"))},\n'
        f' "ambiguous": {_json(AMBIGUOUS)},\n "spellings": {{\n{lines}\n }}\n}}\n'
    )


def collect() -> dict[str, list[str]]:
    """Every country's common English name with the spellings that pycountry does not have."""
    countries = {}
    claims: dict[str, set[str]] = {places.fold(name): {f"{name} (ambiguous)"} for name in AMBIGUOUS}
    for name, known, others in entries():
        for spelling in (*known, *others):
            claims.setdefault(places.fold(spelling), set()).add(name)
        first = {places.fold(spelling): spelling for spelling in reversed(others)}
        told = {places.fold(spelling) for spelling in known}
        countries[name] = sorted(spelling for key, spelling in first.items() if key not in told)
    conflicts = [f"{key!r}: {', '.join(sorted(names))}" for key, names in claims.items() if len(names) > 1]
    if conflicts or "" in claims:
        raise SystemExit("\n".join(["A spelling claimed by two countries, or empty:", *conflicts]))
    return countries


def entries() -> Iterator[tuple[str, list[str], list[str]]]:
    """Name, spellings known at run time, and others, of every country."""
    for code in [*(country.alpha_2 for country in pycountry.countries), *BEYOND_ISO]:
        name = english(code)
        also = ALSO[code].split(", ") if code in ALSO else []
        others = [code, Locale("en").territories[code], *also, *local_names(code), *inverted(code, name)]
        yield name, [name, *iso_names(code)], others
    for name, others in UNITED_KINGDOM.items():
        yield name, [name], others


def english(code: str) -> str:
    """The common English name: CLDR's, without its abbreviations and typography."""
    name = ENGLISH.get(code) or str(Locale("en").territories[code])
    return name.replace("&", "and").replace("St. ", "Saint ").replace("\u2019", "'")


def iso_names(code: str) -> list[str]:
    """The names and the alpha-3 code in pycountry."""
    fields = dict(pycountry.countries.get(alpha_2=code) or ())
    return [fields[field] for field in ("alpha_3", "name", "official_name", "common_name") if field in fields]


def inverted(code: str, name: str) -> Iterator[str]:
    """ "Republic of Korea" for "Korea, Republic of", and the other way round."""
    for spelling in iso_names(code):
        if match := re.fullmatch(r"(.+), (.+ of(?: the)?)", spelling):
            yield f"{match[2]} {match[1]}"
        if (match := re.fullmatch(r"(.+ of) (.+)", spelling)) and places.fold(match[2]) == places.fold(name):
            yield f"{match[2]}, {match[1]}"


def local_names(code: str) -> Iterator[str]:
    """The territory's name in each language that is official there or in a part of it, in every script."""
    languages = {
        str(language).partition("_")[0]
        for regional in (False, True)
        for language in get_official_languages(code, regional=regional, de_facto=True)
    }
    for locale in locales():
        if locale.language in languages and locale.territory in (None, code) and code in locale.territories:
            yield locale.territories[code]


@cache
def locales() -> list[Locale]:
    """Every locale CLDR knows, in a stable order, but for English in the Deseret alphabet of 1854."""
    known = [Locale.parse(identifier) for identifier in sorted(localedata.locale_identifiers())]
    return [locale for locale in known if locale.script != "Dsrt"]


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


if __name__ == "__main__":
    sys.exit(main())

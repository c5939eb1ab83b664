"""A small valid instance of a JSON schema; pure."""

from collections.abc import Mapping
from math import ceil, floor

from travelrec.fake_openai.refusals import Refused

_DEEP = 8
_TOO_DEEP = 60
_HUGE = 1e15
_ENDLESS = 10_000
"""No string of a sample is longer, and no sample has more values."""
_FORMATS = {
    "date": "2024-01-01",
    "date-time": "2024-01-01T12:00:00Z",
    "time": "12:00:00Z",
    "duration": "P1D",
    "email": "sample@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uri": "https://example.com/sample",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


def sample_of(schema: Mapping[str, object]) -> object:
    """Return an instance with what the schema requires and little else; Refused when it has no end."""
    return _Sampler(schema).value(schema, "", 0)


class _Sampler:
    """Walks one schema; `root` is where its references point."""

    def __init__(self, root: Mapping[str, object]) -> None:
        self._root = root
        self._made = 0

    def value(self, schema: object, name: str, depth: int) -> object:
        """Return an instance; `name` is the path that its strings tell, `depth` how far down it stands."""
        self._made += 1
        if depth > _TOO_DEEP or self._made > _ENDLESS:
            raise Refused(400, "The smallest instance of the schema is too large.", param="response_format")
        if not isinstance(schema, dict):
            return f"Offline sample{name}"
        if "const" in schema:
            return schema["const"]
        if isinstance(choices := schema.get("enum"), list) and choices:
            return choices[0]
        if (instead := self._instead(schema, depth)) is not None:
            return self.value(instead, name, depth + 1)
        return self._typed(schema, name, depth)

    def _instead(self, schema: Mapping[str, object], depth: int) -> object:
        """Return the schema that this one stands for, if it is a reference, a choice or a sum."""
        if isinstance(reference := schema.get("$ref"), str):
            return self._at(reference)
        for word in ("anyOf", "oneOf"):
            if isinstance(options := schema.get(word), list) and options:
                return self._option(options, depth)
        if isinstance(parts := schema.get("allOf"), list) and parts:
            return self._merged(schema, parts)
        return None

    def _typed(self, schema: Mapping[str, object], name: str, depth: int) -> object:
        found: object = None
        match _type_of(schema):
            case "object":
                found = self._object(schema, name, depth)
            case "array":
                found = self._array(schema, name, depth)
            case "integer":
                found = int(_number(schema, whole=True))
            case "number":
                found = _number(schema, whole=False)
            case "boolean":
                found = True
            case "string":
                found = _string(schema, name)
        return found

    def _at(self, reference: str) -> object:
        found: object = self._root
        for step in reference.removeprefix("#").strip("/").split("/"):
            if step:
                key = step.replace("~1", "/").replace("~0", "~")
                found = found.get(key) if isinstance(found, dict) else None
        if found is None:
            raise Refused(400, f"The schema has no {reference!r}.", param="response_format")
        return found

    @staticmethod
    def _option(options: list[object], depth: int) -> object:
        """Take the first option; deep down the one that ends soonest."""
        if depth > _DEEP:
            for option in options:
                if isinstance(option, dict) and option.get("type") in ("null", "string", "number", "boolean"):
                    return option
        return options[0]

    def _merged(self, schema: Mapping[str, object], parts: list[object]) -> dict[str, object]:
        merged = {key: value for key, value in schema.items() if key != "allOf"}
        for part in parts:
            if isinstance(part, dict) and isinstance(reference := part.get("$ref"), str):
                part = self._at(reference)  # noqa: PLW2901 - the part is what it refers to
            if not isinstance(part, dict):
                continue
            for key, value in part.items():
                present = merged.get(key)
                if isinstance(present, dict) and isinstance(value, dict):
                    merged[key] = {**present, **value}
                elif isinstance(present, list) and isinstance(value, list):
                    merged[key] = [*present, *value]
                else:
                    merged[key] = value
        return merged

    def _object(self, schema: Mapping[str, object], name: str, depth: int) -> dict[str, object]:
        properties = schema.get("properties")
        known = properties if isinstance(properties, dict) else {}
        required = schema.get("required")
        needed = [each for each in required if isinstance(each, str)] if isinstance(required, list) else []
        names = needed or list(known)
        return {each: self.value(known.get(each, {}), f"{name} {each}", depth + 1) for each in names}

    def _array(self, schema: Mapping[str, object], name: str, depth: int) -> list[object]:
        first = schema.get("prefixItems")
        schemas: list[object] = list(first) if isinstance(first, list) else []
        least, most = _count(schema, "minItems", 0), _count(schema, "maxItems", _ENDLESS)
        wanted = least if depth > _DEEP else max(least, len(schemas), 1)
        wanted = min(wanted, max(most, least))
        schemas += [schema.get("items", {})] * (wanted - len(schemas))
        return [
            self.value(each, f"{name} {place + 1}", depth + 1) for place, each in enumerate(schemas[:wanted])
        ]


def _type_of(schema: Mapping[str, object]) -> object:
    kind = schema.get("type")
    if isinstance(kind, list):
        return next((each for each in kind if each != "null"), "null")
    if kind is None:
        return "object" if "properties" in schema else "array" if "items" in schema else "string"
    return kind


def _count(schema: Mapping[str, object], name: str, default: int) -> int:
    value = schema.get(name)
    return min(max(0, value), _ENDLESS) if isinstance(value, int) else default


def _number(schema: Mapping[str, object], *, whole: bool) -> float:
    step = _bound(schema, "multipleOf") or (1 if whole else 0)
    low, above = _bound(schema, "minimum"), _bound(schema, "exclusiveMinimum")
    high, below = _bound(schema, "maximum"), _bound(schema, "exclusiveMaximum")
    if above is not None and (low is None or above >= low):
        low = above + step if step else _between(above, high if high is not None else below)
    if below is not None and (high is None or below <= high):
        high = below - step if step else _between(below, low, up=False)
    value = 1.0
    if low is not None and value < low:
        value = low
    if high is not None and value > high:
        value = high
    if step:
        value = ceil(value / step) * step
        if high is not None and value > high:
            value = floor(high / step) * step
    return int(value) if value == int(value) else value


def _between(edge: float, other: float | None, *, up: bool = True) -> float:
    if other is None:
        return edge + (1 if up else -1)
    return (edge + other) / 2


def _bound(schema: Mapping[str, object], name: str) -> float | None:
    value = schema.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) < _HUGE else None


def _string(schema: Mapping[str, object], name: str) -> str:
    if isinstance(form := schema.get("format"), str) and form in _FORMATS:
        return _FORMATS[form]
    least, most = _count(schema, "minLength", 0), _count(schema, "maxLength", _ENDLESS)
    return f"Offline sample{name}".ljust(least, ".")[:most]

"""What the offline model can be told to do, and which call goes wrong; pure."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from types import MappingProxyType

FAULTS: Mapping[str, str] = MappingProxyType(
    {
        "429": "too many requests, with Retry-After",
        "429-no-retry-after": "too many requests, without saying when to come back",
        "quota": "429 insufficient_quota: the account has no money left",
        "401": "the key is refused",
        "403": "the key must not ask this",
        "500": "an error of the server",
        "503": "the model is overloaded",
        "reset": "the connection is reset before the answer",
        "hang": "no answer, ever",
        "slow-drip": "the answer comes a byte at a time",
        "half-body": "the connection closes in the middle of the body",
        "broken-json": "the content is not JSON",
        "wrong-schema": "the content is JSON of another shape than asked",
        "refusal": "the model refuses to answer",
        "length": "the content is cut, finish_reason length",
        "content-filter": "the content is withheld, finish_reason content_filter",
        "wrong-model": "404 model_not_found",
        "wrong-count": "lists have one item too few",
        "duplicates": "the items of a list are all the same",
        "empty-strings": "strings are empty",
        "markup": "strings hold Markdown, HTML and line breaks",
        "no-json-schema": "400: response_format json_schema is not supported",
    }
)

BATCH_ENDS = ("completed", "failed", "expired", "cancelled")

_MASK = (1 << 64) - 1
_FAULT_ROLL, _ERROR_ROLL, _STATUS_ROLL, _LATENCY_ROLL = range(4)


@dataclass(frozen=True, slots=True)
class FakeSettings:
    """How the offline model behaves; with the defaults it answers everything at once and well."""

    seed: int = 0
    latency_s: float = 0.0
    latency_jitter: float = 0.0
    """Share of `latency_s` by which a call may be faster or slower, 0 to 1."""
    piece_s: float = 0.0
    """How long each piece of a streamed answer takes, of some 24 characters."""
    error_rate: float = 0.0
    """Share of the calls that get one of the statuses of `error_status`."""
    error_status: tuple[int, ...] = (500, 503, 429)
    rate_limit_per_s: float | None = None
    """Requests a second; a second's worth may come at once. More get 429 with Retry-After."""
    retry_after_s: float = 1.0
    """What the 429s and 503s of `faults` and `error_rate` ask the caller to wait."""
    require_key: str | None = None
    batch_s: float = 1.0
    """How long a batch takes."""
    batch_end: str = "completed"
    """How batches end: completed, failed, expired or cancelled."""
    faults: Mapping[str, float] = field(default_factory=dict)
    """Name of a fault (see `FAULTS`) → share of the calls that suffer it."""

    def __post_init__(self) -> None:
        """Refuse, in words, what makes no sense."""
        for name in ("latency_jitter", "error_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share from 0 to 1, not {getattr(self, name)}")
        for name in ("latency_s", "piece_s", "retry_after_s", "batch_s"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is a number of seconds from 0 on, not {getattr(self, name)}")
        if self.rate_limit_per_s is not None and not 0 < self.rate_limit_per_s < float("inf"):
            raise ValueError(f"rate_limit_per_s is a number above 0, not {self.rate_limit_per_s}")
        if self.batch_end not in BATCH_ENDS:
            raise ValueError(f"batch_end is one of {', '.join(BATCH_ENDS)}, not {self.batch_end}")
        if not self.error_status or not all(400 <= status <= 599 for status in self.error_status):  # noqa: PLR2004 - HTTP's own bounds of an error
            raise ValueError("error_status is a list of statuses from 400 to 599")
        for name, share in self.faults.items():
            if name not in FAULTS:
                raise ValueError(f"unknown fault {name!r}; the known ones are {', '.join(FAULTS)}")
            if not 0 <= share <= 1:
                raise ValueError(f"the share of the fault {name} is from 0 to 1, not {share}")
        if sum(self.faults.values()) > 1 + 1e-9:
            raise ValueError("the shares of the faults add up to more than 1")

    def changed(self, changes: Mapping[str, object]) -> "FakeSettings":
        """Return a copy with these fields changed; ValueError names a field or a type that doesn't fit."""
        known = {each.name for each in fields(self)}
        for name, value in changes.items():
            if name not in known:
                raise ValueError(f"unknown setting {name!r}; the known ones are {', '.join(sorted(known))}")
            if not _fits(name, value):
                raise ValueError(f"{name} can't be {value!r}")
        taken = dict(changes)
        if isinstance(statuses := taken.get("error_status"), list):
            taken["error_status"] = tuple(statuses)
        # `_fits` has checked each value, which the type checker can't see through the mapping
        return replace(self, **taken)  # type: ignore[arg-type]

    def as_dict(self) -> dict[str, object]:
        """Return every field as plain JSON values, without the key."""
        shown = asdict(self)
        shown["error_status"] = list(self.error_status)
        shown["require_key"] = None if self.require_key is None else "(set)"
        return shown

    def trouble(self, number: int) -> str | int | None:
        """Return the fault's name or the status that call `number` gets; None: it goes well."""
        if self.faults:
            at = _roll(self.seed, number, _FAULT_ROLL)
            for name, share in self.faults.items():
                if at < share:
                    return name
                at -= share
        if self.error_rate and _roll(self.seed, number, _ERROR_ROLL) < self.error_rate:
            return self.error_status[int(_roll(self.seed, number, _STATUS_ROLL) * len(self.error_status))]
        return None

    def latency_of(self, number: int) -> float:
        """Return the seconds that call `number` takes."""
        if not self.latency_jitter or not self.latency_s:
            return self.latency_s
        swing = 2 * _roll(self.seed, number, _LATENCY_ROLL) - 1
        return self.latency_s * (1 + self.latency_jitter * swing)


def parse_fault(text: str) -> tuple[str, float]:
    """Read `NAME` or `NAME:SHARE`; ValueError says what is wrong and names the known faults."""
    name, colon, share = text.partition(":")
    if name not in FAULTS:
        raise ValueError(f"unknown fault {name!r}; the known ones are {', '.join(FAULTS)}")
    if not colon:
        return name, 1.0
    try:
        value = float(share)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ValueError(f"the share of the fault {name} is from 0 to 1, not {share!r}")
    return name, value


def _fits(name: str, value: object) -> bool:
    if name == "require_key":
        return value is None or isinstance(value, str)
    if name == "batch_end":
        return isinstance(value, str)
    if name == "faults":
        return isinstance(value, Mapping) and all(_is_number(share) for share in value.values())
    if name == "error_status":
        return isinstance(value, list | tuple) and all(type(status) is int for status in value)
    if name == "seed":
        return type(value) is int
    return _is_number(value) or (name == "rate_limit_per_s" and value is None)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _roll(seed: int, number: int, purpose: int) -> float:
    """Return a number in [0, 1) that depends on nothing but its arguments (splitmix64)."""
    mixed = (seed * 0x9E3779B97F4A7C15 + number * 0xD1B54A32D192ED03 + purpose * 0x8CB92BA72F3D8DD7) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    return (mixed ^ (mixed >> 31)) / (_MASK + 1)

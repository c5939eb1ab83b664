"""Every error this project raises on purpose; a class says whose fault it is and whether trying again can help.

TravelrecError
├── InvalidInput            the caller's: said back in the words of the field
├── BadSetting              the operator's: one line, exit code 2
├── Undecodable             a message nobody here wrote: dead letter; UnknownSchema
├── SchemaRefused           the operator's: readers of the topic could not read what was to be published
├── Unavailable             a neighbour's, for now: wait and try again
│   ├── StoreUnavailable
│   ├── BrokerUnavailable
│   ├── SignalUnavailable
│   ├── RegistryUnavailable
│   └── HistoryUnavailable
├── ModelError              the model's
│   ├── TryAgain            costs an attempt: ModelBusy, ModelTimeout, BrokenOutput, RequestForbidden
│   ├── Never               fails the job: BadModelRequest, Refused, Truncated, Filtered
│   └── NotTheJobsFault     costs the job nothing: RateLimited, BadKey, Forbidden, NoQuota, ProviderDown
└── ThirdPartyError         of the third party that works on tasks
    ├── ThirdPartyFailed    costs an attempt
    ├── ThirdPartyRefused   fails the task
    └── ThirdPartyAway      costs the task nothing: a limit, a wrong address or key, nobody there
"""

from __future__ import annotations

from travelrec.retry import Allowance


class TravelrecError(Exception):
    """Anything that this project raises on purpose; `str(error)` is fit for a user to read."""


class InvalidInput(TravelrecError):
    """What a caller sent can't be used; `field` names it, the message says what would be right."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class BadSetting(TravelrecError):
    """What an operator set can't be used; the message is one line that names every bad variable."""


class Undecodable(TravelrecError):
    """A message that is not in a format and version this release knows."""


class UnknownSchema(Undecodable):
    """A message with a schema that the registry does not know."""


class SchemaRefused(TravelrecError):
    """The schema registry refuses ours, and says why; nothing is published with it."""


class Unavailable(TravelrecError):
    """A neighbour (`name`) can't be reached or did not answer in time; trying again can help."""

    name = "dependency"


class StoreUnavailable(Unavailable):
    """The store did not answer; whether a write in flight stands is not known."""

    name = "store"


class BrokerUnavailable(Unavailable):
    """The broker did not acknowledge; whether a message in flight stands is not known."""

    name = "broker"


class SignalUnavailable(Unavailable):
    """A signal could not be sent; waiters will find out by reading again."""

    name = "signal"


class RegistryUnavailable(Unavailable):
    """The schema registry did not answer, or not as one does."""

    name = "schema registry"


class HistoryUnavailable(Unavailable):
    """The history of chats did not answer; whether an append in flight stands is not known."""

    name = "chat history"


class ModelError(TravelrecError):
    """A model call that gave no usable answer, though it may have cost tokens; `title` is public, short and stable."""

    title = "Model error"
    input_tokens = 0
    output_tokens = 0


class TryAgain(ModelError):
    """Costs the job one attempt; `retry_after_s` is the provider's own wish, in seconds, if it had one."""

    title = "Model unavailable"

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ModelBusy(TryAgain):
    """The provider answered with a 5xx or broke the connection."""

    title = "Model unavailable"


class ModelTimeout(TryAgain):
    """No answer within the job's time."""

    title = "Model timeout"


class BrokenOutput(TryAgain):
    """An answer that is not what was asked for, after one repair round."""

    title = "Unusable model answer"


class RequestForbidden(TryAgain):
    """The provider forbids this request (403), and meanwhile it has answered others."""

    title = "Model forbids the request"


class Never(ModelError):
    """Trying again can't help: the job fails."""


class BadModelRequest(Never):
    """The provider understood the request and says it is wrong."""

    title = "Model rejected the request"


class Refused(Never):
    """The model refuses to answer."""

    title = "Model refused"


class Truncated(Never):
    """The answer ended at the token limit."""

    title = "Model answer truncated"


class Filtered(Never):
    """The provider's content filter held the answer back."""

    title = "Model answer filtered"


class NotTheJobsFault(ModelError):
    """No job could succeed now; the attempt is not counted and intake should pause."""

    title = "Model provider unavailable"


class RateLimited(NotTheJobsFault):
    """The provider asked for fewer requests, by a wish in seconds, by its headers, by both or by neither."""

    title = "Model rate limit"

    def __init__(
        self, message: str, *, retry_after_s: float | None = None, allowance: Allowance | None = None
    ) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.allowance = allowance


class BadKey(NotTheJobsFault):
    """The API key is missing or wrong (401)."""

    title = "Model key rejected"


class Forbidden(NotTheJobsFault):
    """The provider forbids it (403): all that the key asks, or this request alone; see `RequestForbidden`."""

    title = "Model call forbidden"


class NoQuota(NotTheJobsFault):
    """The account has no quota left (429 `insufficient_quota`)."""

    title = "Model quota exhausted"


class ProviderDown(NotTheJobsFault):
    """The provider can't be reached at all."""

    title = "Model provider unreachable"


class ThirdPartyError(TravelrecError):
    """The third party did not take a task, or does not say how its tasks are."""


class ThirdPartyFailed(ThirdPartyError):
    """It answered with a 5xx, in time with nothing, or with what can't be read."""


class ThirdPartyRefused(ThirdPartyError):
    """It understood, and does not want this task."""


class ThirdPartyAway(ThirdPartyError):
    """No task could be submitted now; `retry_after_s` is its own wish, in seconds, if it had one."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s

"""The errors of the OpenAI API: status, body and headers; pure."""

import json
from math import ceil


class Refused(Exception):
    """An answer of 4xx or 5xx in OpenAI's shape."""

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.param = param
        self.code = code
        self.headers: dict[str, str] = {}
        if retry_after_s is not None:
            self.headers["Retry-After"] = str(max(1, ceil(retry_after_s)))
            self.headers["retry-after-ms"] = str(ceil(retry_after_s * 1000))

    def body(self) -> bytes:
        """Return the JSON that a client reads."""
        error = {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}
        return json.dumps({"error": error}).encode()


def too_many(retry_after_s: float | None) -> Refused:
    """Return the 429 of a rate limit."""
    return Refused(
        429,
        "Rate limit reached for requests; please slow down. This is the offline model's own limit.",
        "requests",
        code="rate_limit_exceeded",
        retry_after_s=retry_after_s,
    )


def bad_key() -> Refused:
    """Return the 401 of a key that is missing or not the right one."""
    return Refused(401, "Incorrect API key provided.", code="invalid_api_key")


def no_json_schema() -> Refused:
    """Return the 400 of a server or model that can't follow a schema, worded as OpenAI does."""
    return Refused(
        400, "Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model."
    )


def by_status(status: int, retry_after_s: float) -> Refused:
    """Return an error of this status, made up as the API would say it."""
    match status:
        case 401:
            return bad_key()
        case 403:
            return Refused(403, "You are not allowed to make this request.", code="permission_denied")
        case 429:
            return too_many(retry_after_s)
        case 503:
            return Refused(
                503, "The engine is currently overloaded.", "server_error", retry_after_s=retry_after_s
            )
        case _ if status >= 500:  # noqa: PLR2004 - the border between the caller's and the server's errors
            return Refused(status, "The server had an error while processing your request.", "server_error")
        case _:
            return Refused(status, f"The offline model was told to answer {status}.")


def by_fault(fault: str, model: str, retry_after_s: float) -> Refused | None:
    """Return the error that this fault answers with; None: the fault is no error of HTTP."""
    match fault:
        case "429" | "401" | "403" | "500" | "503":
            return by_status(int(fault), retry_after_s)
        case "429-no-retry-after":
            return too_many(None)
        case "quota":
            return Refused(
                429,
                "You exceeded your current quota, please check your plan and billing details.",
                "insufficient_quota",
                code="insufficient_quota",
            )
        case "wrong-model":
            return Refused(
                404,
                f"The model `{model}` does not exist or you do not have access to it.",
                code="model_not_found",
            )
    return None

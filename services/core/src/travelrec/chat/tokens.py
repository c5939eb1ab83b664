"""Who may speak for a user: whoever has a token that was signed for them."""

from __future__ import annotations

import secrets
import warnings
from datetime import UTC, datetime, timedelta

import jwt

from travelrec.chat.message import is_userid
from travelrec.settings import Settings

_ALGORITHM = "HS256"


def signed_token(secret: str, userid: str, lifetime_s: float) -> str:
    """A token for `userid`."""
    now = datetime.now(UTC)
    claims = {
        "sub": userid,
        "iat": now,
        "exp": now + timedelta(seconds=lifetime_s),
        "jti": secrets.token_hex(8),
    }
    with _short_keys_too():
        return jwt.encode(claims, secret, algorithm=_ALGORITHM)


def may_speak(settings: Settings, token: str, userid: str) -> bool:
    """Whether `token` was signed for `userid`; without a secret to check it with, any token will do."""
    if not token or not is_userid(userid):
        return False
    if settings.chat_token_secret is None:
        return True
    try:
        with _short_keys_too():
            claims = jwt.decode(
                token,
                settings.chat_token_secret.get_secret_value(),
                algorithms=[_ALGORITHM],
                options={"require": ["sub"], "verify_aud": False},
                leeway=5,
            )
    except (jwt.InvalidTokenError, ValueError, RecursionError):
        return False
    return bool(claims["sub"] == userid)


def _short_keys_too() -> warnings.catch_warnings[None]:
    """The length of the key is the operator's decision."""
    return warnings.catch_warnings(action="ignore", category=jwt.InsecureKeyLengthWarning)

"""What the settings open, and what is said of a URL that only its driver can judge; nobody is connected to."""

import pytest

from travelrec.connect import opened_parts
from travelrec.errors import BadSetting
from travelrec.settings import Settings

pytestmark = pytest.mark.asyncio
SECRET = "hunter2-secret"


def settings(name: str, url: str) -> Settings:
    return Settings.model_validate({"STORE_URL": "memory://", name: url})


@pytest.mark.parametrize("name", ["REDIS_URL", "SIGNAL_URL"])
@pytest.mark.parametrize(
    "url",
    ["redis://localhost", "redis://localhost/0", "rediss://u:p@[::1]?ssl_cert_reqs=none", "redis://h?db=1"],
)
async def test_redis_needs_no_port(name: str, url: str) -> None:
    """It is 6379 where none is named, for chats and their rate limit as for signals."""
    async with opened_parts(settings(name, url)):
        pass


@pytest.mark.parametrize("name", ["REDIS_URL", "SIGNAL_URL"])
@pytest.mark.parametrize(
    "option",
    ["socket_timeout=abc", "db=x", "nope=1", "timeout=5", "protocol=9", "retry=1", "max_connections=-1"],
)
async def test_an_option_that_redis_does_not_have_is_named(name: str, option: str) -> None:
    """One line with the variable, before anybody is asked; no password."""
    with pytest.raises(BadSetting, match=f"^{name}: ") as bad:
        async with opened_parts(settings(name, f"redis://u:{SECRET}@127.0.0.1:1?{option}")):
            pass
    assert len(str(bad.value).splitlines()) == 1
    assert SECRET not in str(bad.value)

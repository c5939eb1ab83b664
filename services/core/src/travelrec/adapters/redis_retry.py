"""What our clients of Redis share: how a call is tried again, and what is said of a URL that they can't use."""

from redis.asyncio import ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from travelrec.errors import BadSetting

ONCE_MORE = Retry(NoBackoff(), 1, (RedisConnectionError,))
"""On a new connection, at once; not after a time-out. For calls that may come twice: a connection from before the
server's restart is worth one more."""


def refuse_bad_options(setting: str, url: str) -> None:
    """Raises `BadSetting` for what stands behind the `?` of `url` and is no option of a connection; asks nobody."""
    try:
        ConnectionPool.from_url(url).make_connection()  # type: ignore[no-untyped-call]  # not typed by redis
    except (AttributeError, TypeError, ValueError, RedisError) as error:  # as it meets each of them
        raise BadSetting(f"{setting}: what follows the ? is no option of Redis ({error})") from error

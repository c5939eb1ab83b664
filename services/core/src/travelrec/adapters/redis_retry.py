"""How calls of Redis are tried again: a connection that was open before the server's restart is worth one more."""

from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

ONCE_MORE = Retry(NoBackoff(), 1, (RedisConnectionError,))
"""On a new connection, at once; not after a time-out. For calls that may come twice."""

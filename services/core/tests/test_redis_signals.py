"""What signals over Redis do beyond the contract: away, silent, and back again."""

from collections.abc import Callable

import pytest

from support import Redis, eventually, free_port
from travelrec.adapters.redis_signals import RedisSignals
from travelrec.connect import opened_parts
from travelrec.errors import SignalUnavailable
from travelrec.job import Status, new_uid
from travelrec.settings import Settings
from travelrec.wire import Signal

pytestmark = pytest.mark.asyncio


def announced_and_heard(signals: RedisSignals, heard: list[Signal]) -> Callable[[], object]:
    """Announces one more; says whether any was heard."""

    async def tried() -> bool:
        try:
            await signals.announce([Signal(new_uid(), Status.COMPLETED)])
        except SignalUnavailable:
            return False
        return bool(heard)

    return tried


async def test_away_is_said_in_time() -> None:
    """A server that does not answer is `SignalUnavailable`; who listens is not held up by it."""
    heard: list[Signal] = []
    async with (
        RedisSignals.opened(f"redis://127.0.0.1:{free_port()}", "s", timeout_s=0.5) as signals,
        signals.listen(heard.extend),
    ):
        for call in (signals.announce([Signal(new_uid(), Status.COMPLETED)]), signals.ping()):
            with pytest.raises(SignalUnavailable):
                await call


async def test_signals_are_heard_again_after_a_kill(new_redis: Callable[..., Redis]) -> None:
    """Whoever listened before the server was killed hears what is announced once it is back."""
    server = new_redis()
    heard: list[Signal] = []
    async with RedisSignals.opened(server.url, "s") as signals, signals.listen(heard.extend):
        await eventually(announced_and_heard(signals, heard))
        server.kill()
        with pytest.raises(SignalUnavailable):
            await signals.ping()
        heard.clear()
        server.start()
        await eventually(announced_and_heard(signals, heard), 20)


async def test_a_listener_leaves_a_connection_that_is_silent(
    redis_server: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """A connection that is open and says nothing is given up, and made again when the server answers."""
    heard: list[Signal] = []
    async with (
        redis_server.proxy() as network,
        RedisSignals.opened(f"redis://{network.address}", new_uid(), timeout_s=0.5) as signals,
        signals.listen(heard.extend),
    ):
        network.freeze()
        await eventually(lambda: "signals are not heard for now" in caplog.text, 20)
        with pytest.raises(SignalUnavailable, match=r"Redis: .+"):
            await signals.ping()
        network.thaw()
        await eventually(announced_and_heard(signals, heard), 20)


@pytest.mark.parametrize("broker_url", ["memory://", "kafka://127.0.0.1:1"])
async def test_the_setting_names_redis_beside_any_broker(redis_server: Redis, broker_url: str) -> None:
    """`SIGNAL_URL=redis://…` carries signals between processes whatever the broker is."""
    settings = Settings(
        _env_file=None, broker_url=broker_url, store_url="memory://", signal_url=redis_server.url
    )
    heard: list[Signal] = []
    sent = [Signal(new_uid(), Status.FAILED)]
    async with (
        opened_parts(settings) as here,
        opened_parts(settings) as there,
        here.signals.listen(heard.extend),
    ):
        await there.signals.announce(sent)
        await eventually(lambda: heard == sent)

"""The contract of `chat.ports.ChatHistory`, held by every adapter."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from support import Redis, eventually, unique_name
from travelrec.adapters.memory_chat import MemoryChatHistory
from travelrec.adapters.sqlite import SqliteStore
from travelrec.adapters.sqlite_chat import SqliteChatHistory
from travelrec.chat.message import Entry, Piece, Reply, Said
from travelrec.chat.ports import ChatHistory
from travelrec.errors import HistoryUnavailable

NOW = 1_700_000_000.25
LIMIT = 20

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture(params=["memory", "sqlite", pytest.param("redis", marks=pytest.mark.real("redis"))])
async def history(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ChatHistory]:
    if request.param == "memory":
        yield MemoryChatHistory(LIMIT)
    elif request.param == "sqlite":
        async with SqliteStore.opened(tmp_path / "jobs.db") as sqlite:
            yield SqliteChatHistory(sqlite, LIMIT)
    else:
        from travelrec.adapters.redis_chat import RedisChatHistory

        async with RedisChatHistory.opened(request.getfixturevalue("redis_server").url, limit=LIMIT) as redis:
            yield redis


@pytest.fixture
def user() -> str:
    return unique_name("user")


def reply(user: str, message: str, *, failed: bool = False, at: float = NOW) -> Reply:
    return Reply(Said(message, user, f"about {message}? é🏝\n", at), f"this: {message}", at + 1, failed)


def shown(entries: list[Entry]) -> list[tuple[str, str]]:
    return [(entry.kind, entry.message) for entry in entries]


async def test_a_message_and_its_reply_are_kept_as_they_are(history: ChatHistory, user: str) -> None:
    """Text and times come back unchanged, the message before its reply; another user has nothing."""
    assert await history.append(reply(user, "1"))
    said, answered = await history.recent(user, 10)
    assert dataclasses.astuple(said)[1:5] == ("message", "about 1? é🏝\n", NOW, "1")
    assert dataclasses.astuple(answered)[1:5] == ("response", "this: 1", NOW + 1, "1")
    assert await history.recent(unique_name("other"), 10) == []


async def test_a_reply_is_appended_once(history: ChatHistory, user: str) -> None:
    """However often and by how many it is tried at once, also with other words; another user's id is another."""
    said = reply(user, "1").to
    assert not await history.answered(said)
    appended = await asyncio.gather(*(history.append(reply(user, "1", at=NOW)) for _ in range(10)))
    assert sorted(appended) == [False] * 9 + [True]
    assert not await history.append(dataclasses.replace(reply(user, "1"), content="another answer"))
    assert await history.answered(said)
    assert shown(list(await history.recent(user, 10))) == [("message", "1"), ("response", "1")]
    assert not await history.answered(dataclasses.replace(said, userid=unique_name("other")))


async def test_a_message_that_failed_may_be_sent_again(history: ChatHistory, user: str) -> None:
    """A failure is noted for this sending; the next of the same id can fail, or be answered once."""
    assert await history.append(reply(user, "1", failed=True))
    assert not await history.append(reply(user, "1", failed=True))
    assert await history.answered(reply(user, "1").to)
    later = reply(user, "1", at=NOW + 60)
    assert not await history.answered(later.to)
    assert await history.append(later)
    assert await history.answered(reply(user, "1", at=NOW + 90).to)
    kinds = [entry.kind for entry in await history.recent(user, 10)]
    assert kinds == ["message", "error", "message", "response"]


@pytest.mark.parametrize("failed_first", [False, True])
async def test_a_sending_has_an_answer_or_a_failure(
    history: ChatHistory, user: str, failed_first: bool
) -> None:
    """Two workers that had it at once may come to different ends: the first one counts."""
    assert await history.append(reply(user, "1", failed=failed_first))
    assert not await history.append(reply(user, "1", failed=not failed_first))
    assert [entry.kind for entry in await history.recent(user, 10)] == [
        "message",
        "error" if failed_first else "response",
    ]


async def test_what_is_behind_a_place_is_read_in_order(history: ChatHistory, user: str) -> None:
    """Pages of any size, one after the other, have everything once; behind the last place there is nothing."""
    for number in range(5):
        await history.append(reply(user, str(number)))
    everything = list(await history.recent(user, 10))
    assert [entry.message for entry in everything] == ["0", "0", "1", "1", "2", "2", "3", "3", "4", "4"]
    for size in (1, 3, 100):
        found: list[Entry] = []
        while page := await history.after(user, found[-1].id if found else "", size):
            assert len(page) <= size
            found += page
        assert found == everything
    assert list(await history.after(user, everything[3].id, 100)) == everything[4:]
    assert list(await history.recent(user, 3)) == everything[-3:]


@pytest.mark.parametrize(
    "since",
    ["", "nonsense", "-", "+", "(1", "0", "$", "1-1-1", "'; --", "9" * 50, "9" * 20 + "-0", "0-" + "9" * 20],
)
async def test_behind_an_unknown_place_is_everything(history: ChatHistory, user: str, since: str) -> None:
    """What no history has given is no place, and harms nothing."""
    await history.append(reply(user, "1"))
    assert len(await history.after(user, since, 10)) == 2


async def test_the_list_is_bounded(history: ChatHistory, user: str) -> None:
    """Old entries go when many new ones come; Redis may keep a node more."""
    for number in range(120):
        await history.append(reply(user, str(number)))
    kept = list(await history.recent(user, 1000))
    assert LIMIT <= len(kept) <= LIMIT + 100
    assert kept[-1].message == "119"


async def test_every_append_rings_for_its_user(history: ChatHistory, user: str) -> None:
    """A listener hears the userid, a repeat too, as what was rung for before may have been missed."""
    heard: list[str | None] = []
    async with history.listen(heard.append):
        await history.append(reply(user, "1"))
        await eventually(lambda: heard.count(user) == 1)
        await history.append(reply(user, "1"))
        await eventually(lambda: heard.count(user) == 2)
    await history.append(reply(user, "2"))
    assert heard.count(user) == 2


async def test_pieces_are_heard_by_who_listens_and_kept_nowhere(history: ChatHistory, user: str) -> None:
    """A piece comes as it was told, rings for nobody, and is not in the history; one that nobody hears is gone."""
    pieces = [Piece(user, "1", 0, "é🏝\n"), Piece(user, "1", 3, '"more"')]
    await history.tell(Piece(user, "0", 0, "too early"))
    heard: list[Piece] = []
    rung: list[str | None] = []
    async with history.listen(rung.append, heard.append), history.listen(rung.append):
        for piece in pieces:
            await history.tell(piece)
        await eventually(lambda: len(heard) == len(pieces))
        await history.append(reply(user, "1"))
        await eventually(lambda: rung.count(user) == 2)
    assert heard == pieces
    assert await history.recent(user, 10) == await history.after(user, "", 10)
    assert shown(list(await history.recent(user, 10))) == [("message", "1"), ("response", "1")]


async def test_the_file_keeps_a_history(tmp_path: Path, user: str) -> None:
    """With SQLite what was said is there after a restart, and is not appended again."""
    for expected in (True, False):
        async with SqliteStore.opened(tmp_path / "jobs.db") as sqlite:
            assert await SqliteChatHistory(sqlite).append(reply(user, "1")) is expected


async def test_redis_that_goes_and_comes_back(new_redis: Callable[..., Redis], user: str) -> None:
    """Away, every call says so; back, everything is there, and the bell says that rings may have been missed."""
    from travelrec.adapters.redis_chat import RedisChatHistory

    server = await asyncio.to_thread(new_redis)
    async with RedisChatHistory.opened(server.url, timeout_s=1.0) as history:
        heard: list[str | None] = []
        async with history.listen(heard.append):
            await history.append(reply(user, "1"))
            await eventually(lambda: user in heard)
            await asyncio.to_thread(server.stop)
            said = reply(user, "1").to
            for call in (
                history.append(reply(user, "2")),
                history.answered(said),
                history.after(user, "", 10),
                history.recent(user, 10),
                history.ping(),
                history.tell(Piece(user, "2", 0, "nobody hears")),
            ):
                with pytest.raises(HistoryUnavailable):
                    await call
            heard.clear()
            await asyncio.to_thread(server.start)
            await eventually(lambda: None in heard, 20)
            assert await history.answered(said)
            await history.append(reply(user, "2"))
            await eventually(lambda: user in heard)


async def test_redis_that_hangs_is_away(new_redis: Callable[..., Redis], user: str) -> None:
    """A frozen server is told apart within the time-out, and the bell is heard again when it goes on."""
    from travelrec.adapters.redis_chat import RedisChatHistory

    server = await asyncio.to_thread(new_redis)
    async with RedisChatHistory.opened(server.url, timeout_s=0.5) as history:
        heard: list[str | None] = []
        async with history.listen(heard.append):
            await eventually(lambda: None in heard)
            server.freeze()
            with pytest.raises(HistoryUnavailable):
                await history.ping()
            server.thaw()

            async def rings() -> bool:
                await history.append(reply(user, "1"))
                return user in heard

            await eventually(rings, 20)

"""The Batch API as the third party, with the real SDK against the offline model's."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import openai
import pytest
from openai.types import Batch

from support import eventually
from travelrec.adapters.openai_batch import OpenAIBatches
from travelrec.adapters.third_party import _refusal
from travelrec.errors import ThirdPartyAway, ThirdPartyFailed, ThirdPartyRefused
from travelrec.fake_openai import FakeOpenAI, FakeSettings, running
from travelrec.job import new_uid
from travelrec.tasks.ports import Rows
from travelrec.tasks.task import Row, TaskStatus

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]

COMPLETED, ERROR = TaskStatus.COMPLETED, TaskStatus.ERROR


@asynccontextmanager
async def asked(
    model: str = "offline-sample", **given: object
) -> AsyncIterator[tuple[OpenAIBatches, FakeOpenAI]]:
    """The adapter and what it asks."""
    async with (
        running(FakeSettings(**{"batch_s": 0.1, **given})) as fake,  # type: ignore[arg-type]
        OpenAIBatches.opened(api_key="key", base_url=fake.base_url, model=model, timeout_s=10.0) as batches,
    ):
        yield batches, fake


async def ended(batches: OpenAIBatches, count: int) -> Rows:
    """What is said once so many tasks have ended."""

    async def all_said() -> Rows | None:
        rows = await batches.rows()
        return rows if len(rows.good) == count else None

    return await eventually(all_said)  # type: ignore[return-value]


async def submit(batches: OpenAIBatches, *ids: str) -> None:
    await asyncio.gather(*(batches.submit(id_, new_uid(), {}) for id_ in ids))


async def test_tasks_at_the_same_time_share_a_batch() -> None:
    """One upload for all of them; each is said to be completed, by its own id, when the batch has ended."""
    names = [str(number) for number in range(50)] + ["a:b", "é", " "]
    async with asked(batch_s=0.5) as (batches, fake):
        await submit(batches, *names)
        assert fake.batches.uploads <= 3
        assert await batches.rows() == Rows([], 0)
        rows = await ended(batches, len(names))
        assert sorted(rows.good, key=lambda row: row.id) == [Row(id_, COMPLETED) for id_ in sorted(names)]
        assert rows.bad == 0


async def test_an_expired_batch_has_done_a_part() -> None:
    """What is in its output file is done, what is in its error file is an error with the reason."""
    async with asked(batch_end="expired") as (batches, _):
        await submit(batches, "1", "2", "3", "4")
        said = {row.id: row for row in (await ended(batches, 4)).good}
        assert [said[id_].status for id_ in "1234"] == [COMPLETED, COMPLETED, ERROR, ERROR]
        assert "completion window expired" in (said["4"].error_message or "")


async def test_a_cancelled_batch_has_done_a_part() -> None:
    """What neither file names was not done: an error that says so."""
    async with asked(batch_end="cancelled") as (batches, _):
        await submit(batches, "1", "2", "3", "4")
        said = {row.id: row for row in (await ended(batches, 4)).good}
        assert [said[id_].status for id_ in "1234"] == [COMPLETED, COMPLETED, ERROR, ERROR]
        assert said["3"].error_message == "The batch is cancelled."


async def test_a_batch_that_is_cancelled_by_hand() -> None:
    """By somebody else, while it runs."""
    async with asked(batch_s=5.0) as (batches, fake):
        await submit(batches, "1", "2")
        async with openai.AsyncOpenAI(api_key="key", base_url=fake.base_url) as client:
            (one,) = [batch async for batch in client.batches.list()]
            await client.batches.cancel(one.id)
        assert {row.status for row in (await ended(batches, 2)).good} == {COMPLETED, ERROR}


async def test_a_failed_batch_fails_its_tasks() -> None:
    """With what it says of its input."""
    async with asked(batch_end="failed") as (batches, _):
        await submit(batches, "1")
        (row,) = (await ended(batches, 1)).good
        assert (row.status, row.error_message) == (ERROR, "The batch is failed: The input file is not valid.")


async def test_a_request_that_fails_is_an_error_of_its_own() -> None:
    """The others are not touched."""
    async with asked(model="") as (batches, _):
        await submit(batches, "1")
        (row,) = (await ended(batches, 1)).good
        assert (row.status, row.error_message) == (ERROR, "You must provide a model parameter.")


async def test_the_newest_batch_has_the_last_word() -> None:
    """A task that was submitted again is what its last batch says; many pages of batches are read."""
    async with asked(batch_s=0.0, batch_end="failed") as (batches, fake):
        await submit(batches, "1")
        assert (await ended(batches, 1)).good[0].status is ERROR
        fake.configure(batch_end="completed")
        for number in range(120):
            await submit(batches, f"x{number}")
        await submit(batches, "1")
        rows = await ended(batches, 121)
        assert {row.status for row in rows.good} == {COMPLETED}


async def test_the_same_keys_are_one_batch() -> None:
    """Where the server honours the key."""
    async with asked(batch_s=5.0) as (batches, fake):
        key = new_uid()
        for _ in range(2):
            await batches.submit("1", key, {})
        async with openai.AsyncOpenAI(api_key="key", base_url=fake.base_url) as client:
            assert len([batch async for batch in client.batches.list()]) == 1


async def test_batches_of_others_are_left_alone() -> None:
    """Only those with our mark are read."""
    async with asked(batch_s=0.0) as (batches, fake):
        async with openai.AsyncOpenAI(api_key="key", base_url=fake.base_url) as client:
            file = await client.files.create(file=("x", b'{"custom_id": "k:1"}'), purpose="batch")
            await client.batches.create(
                input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
            )
        assert await batches.rows() == Rows([], 0)


async def test_errors_say_whose_fault_they_are() -> None:
    """A key that is rejected and nobody there cost a task nothing; a server that hangs or fails costs an attempt."""
    async with asked(require_key="other") as (batches, _):
        with pytest.raises(ThirdPartyAway):
            await batches.submit("1", "k", {})
        with pytest.raises(ThirdPartyAway):
            await batches.rows()
    async with OpenAIBatches.opened(
        api_key="x", base_url="http://127.0.0.1:9/v1", model="m", timeout_s=2.0
    ) as nobody:
        with pytest.raises(ThirdPartyAway):
            await nobody.rows()


@pytest.mark.parametrize(
    ("status", "raised"),
    [
        (400, ThirdPartyRefused),
        (404, ThirdPartyAway),
        (429, ThirdPartyAway),
        (500, ThirdPartyFailed),
        (503, ThirdPartyFailed),
    ],
)
async def test_each_status_has_its_class(status: int, raised: type[Exception]) -> None:
    """By the SDK's own errors."""
    from aiohttp import web

    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"error": {"message": "no"}}, status=status, headers={"Retry-After": "7"})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        async with OpenAIBatches.opened(api_key="x", base_url=url, model="m", timeout_s=5.0) as batches:
            with pytest.raises(raised) as caught:
                await batches.submit("1", "k", {})
            if isinstance(caught.value, ThirdPartyAway) and status == 429:
                assert caught.value.retry_after_s == 7.0
    finally:
        await runner.cleanup()


async def test_a_poll_that_is_cut_off_keeps_what_it_has_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the next one gets further, however little it has time for; a file that is gone is looked for again."""
    async with asked(batch_s=0.0) as (batches, fake):
        for id_ in ("1", "2", "3"):
            await submit(batches, id_)
        read, reads = batches._read, list[str]()

        async def slow(batch: Batch) -> Rows:
            reads.append(batch.id)
            if len(reads) in (2, 4):
                await asyncio.Event().wait()  # until the poll is cut off
            return await read(batch)

        monkeypatch.setattr(batches, "_read", slow)
        for _ in range(2):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(batches.rows(), 1.0)
        assert len((await batches.rows()).good) == 3
        assert len(reads) == 5
        batches._ended.clear()
        async with openai.AsyncOpenAI(api_key="key", base_url=fake.base_url) as client:
            newest = await anext(aiter(client.batches.list()))
        content = fake.batches._files.pop(newest.output_file_id or "")
        assert {row.id for row in (await batches.rows()).good} == {"1", "2"}
        fake.batches._files[newest.output_file_id or ""] = content
        assert {row.id for row in (await batches.rows()).good} == {"1", "2", "3"}


@pytest.mark.parametrize("status", [301, 302, 307, 402, 407])
async def test_an_address_that_is_not_the_right_one_costs_a_task_nothing(status: int) -> None:
    """A redirect, or somebody in between who asks for something."""
    assert isinstance(_refusal(status, b"", {}), ThirdPartyAway)

"""`travelrec dead-letters`: what failed for good, and trying it again."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from travelrec import tracing
from travelrec.connect import opened_store
from travelrec.errors import StoreUnavailable, TravelrecError
from travelrec.job import Job, Status, Try, is_uid
from travelrec.ports import Store
from travelrec.retry import http_date
from travelrec.settings import read_settings

app = typer.Typer(help="What failed for good: list it, look at it, try it again.", no_args_is_help=True)

_TABLE_COLUMNS = 120  # a uid is never cut off, since the next command needs it

Error = Annotated[str | None, typer.Option(help="Only those with this error, e.g. 'Model timeout'.")]
Kind = Annotated[str | None, typer.Option(help="Only those of this kind, e.g. recommendation.")]
Since = Annotated[float, typer.Option(help="Only those that failed in the last so many hours.", min=0)]
Limit = Annotated[int, typer.Option(help="At most so many, newest first.", min=1, max=100_000)]


@app.command("list")
def list_(
    error: Error = None,
    kind: Kind = None,
    since: Since = 24.0,
    limit: Limit = 100,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Lists failed jobs, newest first."""
    asyncio.run(_list(error, kind, since, limit, as_json))


@app.command()
def show(uid: Annotated[str, typer.Argument(help="The job's uid.")]) -> None:
    """Shows a failed job: what was asked, every attempt and its reason."""
    asyncio.run(_show(uid))


@app.command()
def replay(
    uids: Annotated[list[str] | None, typer.Argument(help="The uids; or choose with the options.")] = None,
    error: Error = None,
    kind: Kind = None,
    since: Since = 24.0,
    limit: Limit = 100,
    everything: Annotated[bool, typer.Option("--all", help="All that the options leave.")] = False,
    rate: Annotated[float, typer.Option(help="At most so many a second.", min=0.01)] = 50.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be tried again.")] = False,
) -> None:
    """Tries failed jobs again, with their uid and trace: their callers' next look finds them pending."""
    if bool(uids) == everything:
        raise typer.BadParameter("give uids, or --all for every failed job that the other options leave")
    asyncio.run(_replay(uids or [], error, kind, since, limit, rate, dry_run))


@asynccontextmanager
async def _opened() -> AsyncIterator[Store]:
    """The store; one that is away is a `TravelrecError` with the next step."""
    async with opened_store(read_settings()) as store:
        try:
            yield store
        except StoreUnavailable as error:
            raise TravelrecError(f"{error}; STORE_URL names it, `travelrec doctor` says more") from error


async def _list(error: str | None, kind: str | None, since: float, limit: int, as_json: bool) -> None:
    async with _opened() as store:
        found = await _found(store, error, kind, since, limit)
    if as_json:
        for job in found:
            print(json.dumps(_as_json(job), ensure_ascii=False))  # noqa: T201 - this is the command line
        return
    table = Table(box=None)
    for name in ("uid", "kind", "failed at", "error", "attempts"):
        table.add_column(name, no_wrap=True, overflow="ignore")
    for job in found:
        when = http_date(job.ended_at or 0.0)
        table.add_row(job.uid, job.kind, when, escape(job.error or ""), str(len(job.tries)))
    console = Console()
    console.width = max(console.width, _TABLE_COLUMNS)
    console.print(table if found else f"Nothing failed in the last {since:g} hours.")


async def _show(uid: str) -> None:
    async with _opened() as store:
        job = await _one(store, uid)
    print(json.dumps(_as_json(job), ensure_ascii=False, indent=2))  # noqa: T201 - this is the command line


async def _replay(
    uids: list[str], error: str | None, kind: str | None, since: float, limit: int, rate: float, dry_run: bool
) -> None:
    async with _opened() as store:
        if uids:
            chosen = [(await _one(store, uid)).uid for uid in uids]
        else:
            chosen = [job.uid for job in await _found(store, error, kind, since, limit)]
        console = Console(stderr=True)
        if dry_run:
            for uid in chosen:
                print(uid)  # noqa: T201 - this is the command line
            console.print(f"{len(chosen)} would be tried again.")
            return
        revived = 0
        began = time.monotonic()
        for number, uid in enumerate(chosen):
            await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
            revived += len(await store.revive([uid], time.time()))
        console.print(f"{revived} of {len(chosen)} will be tried again.")


async def _found(store: Store, error: str | None, kind: str | None, since: float, limit: int) -> list[Job]:
    found = await store.failed(time.time() - since * 3600, 100_000 if error or kind else limit)
    return [j for j in found if error in (None, j.error) and kind in (None, j.kind)][:limit]


async def _one(store: Store, uid: str) -> Job:
    job = (await store.get([uid])).get(uid) if is_uid(uid) else None
    if job is None:
        raise TravelrecError(f"there is no job {uid[:40]!r}; `travelrec dead-letters list` shows what failed")
    if job.status is not Status.FAILED:
        raise TravelrecError(f"{uid} has not failed; it is {job.status.value}")
    return job


def _try_as_json(one: Try) -> dict[str, str]:
    return {"at": http_date(one.at), "error": one.error, "message": one.message}


def _as_json(job: Job) -> dict[str, object]:
    return {
        "uid": job.uid,
        "kind": job.kind,
        "params": dict(job.params),
        "accepted_at": http_date(job.created_at),
        "failed_at": http_date(job.ended_at or 0.0),
        "error": job.error,
        "message": job.message,
        "tries": [_try_as_json(t) for t in job.tries],
        "tries before it was replayed": [_try_as_json(t) for t in job.earlier],
        "trace": tracing.trace_id(job.headers),
        "headers": dict(job.headers),
    }

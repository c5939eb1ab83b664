"""The role `chat`: takes what users say, asks the model, publishes what it answers."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from dataclasses import replace

import structlog
from opentelemetry.trace import SpanKind

from travelrec import metrics, tracing
from travelrec.chat.message import UNAVAILABLE, Entry, Reply, Said, notes_of, plain
from travelrec.chat.ports import ChatHistory
from travelrec.chat.prompt import CONTEXT_ENTRIES, conversation
from travelrec.chat.wire import decode_said, encode_reply, is_streamed
from travelrec.errors import (
    BrokenOutput,
    BrokerUnavailable,
    ModelError,
    NotTheJobsFault,
    RateLimited,
    TryAgain,
    Unavailable,
    Undecodable,
)
from travelrec.ports import Broker, Conversation, Delivery
from travelrec.retry import RetryPolicy
from travelrec.wire import INCOMING_TOPIC, RESPONSES_TOPIC, dead_letter_topic
from travelrec_worker.gate import Gate, Shut
from travelrec_worker.preview import previewed
from travelrec_worker.progress import Progress
from travelrec_worker.rejected import rejected

log = structlog.get_logger(__name__)

_BROKER_RETRY_S = 0.5
_USERS_KEPT = 10_000  # whose last exchanges are known before the history has them
_EXCHANGES_KEPT = 10
_LEAST_S = 5.0  # for a message that has waited for long


class Chat:
    """Handles one message; those of a user come in turn. It is acknowledged when its reply is on the broker.

    A message that is delivered again is answered again only where nobody knows of its reply; what `relay` writes is
    written once all the same.
    """

    def __init__(
        self,
        broker: Broker,
        history: ChatHistory,
        gate: Gate,
        progress: Progress,
        *,
        retry: RetryPolicy,
        timeout_s: float,
    ) -> None:
        self._broker = broker
        self._history = history
        self._gate = gate
        self._progress = progress
        self._retry = retry
        self._timeout_s = timeout_s
        self._latest: OrderedDict[str, list[Reply]] = OrderedDict()  # by user, the newest last
        self._replies = {what: metrics.CHAT_REPLIES.labels(what) for what in ("answered", "failed")}
        metrics.DEAD_LETTERS.labels(dead_letter_topic(INCOMING_TOPIC))  # from 0 on: the first is an increase
        self._repeats = metrics.CHAT_REPEATS.labels("chat")

    async def handle(self, delivery: Delivery) -> None:
        """One message, from its taking to its reply."""
        message = delivery.message
        try:
            said = decode_said(message)
        except Undecodable as error:
            await rejected(self._broker, INCOMING_TOPIC, delivery, str(error))
            return
        with tracing.span("chat", message.headers, SpanKind.CONSUMER) as span:
            headers = {**message.headers, **tracing.carried(span)}
            if await self._is_answered(said):
                self._repeats.inc()
            else:
                reply = await self._reply(said, streamed=is_streamed(message))
                await self._publish(reply, headers)
                self._remember(reply)
        delivery.acknowledge()

    async def _is_answered(self, said: Said) -> bool:
        if any(reply.note in notes_of(said) for reply in self._latest.get(said.userid, ())):
            return True
        try:
            return await self._history.answered(said)
        except Unavailable as error:
            log.warning("repeats are not known", error=str(error))
            return False

    async def _reply(self, said: Said, *, streamed: bool) -> Reply:
        asked = conversation(await self._before(said.userid), said.content)
        began = time.monotonic()
        try:
            if streamed:
                async with previewed(self._history, said) as hear:
                    text = await self._ask(said, replace(asked, hear=hear))
            else:
                text = await self._ask(said, asked)
        except (ModelError, Shut, TimeoutError) as error:
            title = error.title if isinstance(error, ModelError) else "Model timeout"
            self._replies["failed"].inc()
            log.warning("message not answered", message=said.id, error=title)
            return Reply(said, UNAVAILABLE, time.time(), failed=True)
        self._replies["answered"].inc()
        log.info("message answered", message=said.id, seconds=round(time.monotonic() - began, 3))
        return Reply(said, text, time.time())

    async def _ask(self, said: Said, asked: Conversation) -> str:
        """The model's answer, after as many attempts as its time allows; raises what the last of them came to."""
        waited_s = time.time() - said.at
        ends_at = time.monotonic() + max(_LEAST_S, min(self._timeout_s, self._timeout_s - waited_s))
        failures = 0
        trouble: ModelError | None = None
        while True:
            try:
                again = isinstance(trouble, RateLimited)
                async with self._gate.place(ends_at - time.monotonic(), again=again, guarded=False) as place:
                    left_s = max(0.1, ends_at - time.monotonic())
                    call = place.ask(asked, left_s)
                    answer = await self._progress.within(left_s * 1.1, "chat", said.id, call)
                    if text := plain(answer.text):
                        return text
                    raise BrokenOutput("The model said nothing that can be read.")
            except NotTheJobsFault as error:
                trouble = error
            except TryAgain as error:
                failures += 1
                trouble = error
                metrics.RETRIED.labels(error.title).inc()
                pause_s = self._retry.delay_s(failures, retry_after_s=error.retry_after_s)
                if self._retry.exhausted(failures) or time.monotonic() + pause_s > ends_at:
                    raise
                await asyncio.sleep(pause_s)
            except TimeoutError:
                if trouble is not None:
                    raise trouble from None
                raise

    async def _before(self, userid: str) -> list[Entry]:
        """What the user and the assistant have said, the newest of it from here: `relay` may not have written it."""
        try:
            entries = list(await self._history.recent(userid, CONTEXT_ENTRIES))
        except Unavailable as error:
            log.warning("answered without the history", error=str(error))
            entries = []
        known = {entry.message for entry in entries}
        for reply in self._latest.get(userid, ()):
            if reply.to.id not in known and not reply.failed:
                said = reply.to
                entries.append(Entry("", "message", said.content, said.at, said.id))
                entries.append(Entry("", "response", reply.content, reply.at, said.id))
        return entries

    def _remember(self, reply: Reply) -> None:
        latest = self._latest.setdefault(reply.to.userid, [])
        latest.append(reply)
        del latest[:-_EXCHANGES_KEPT]
        self._latest.move_to_end(reply.to.userid)
        if len(self._latest) > _USERS_KEPT:
            self._latest.popitem(last=False)

    async def _publish(self, reply: Reply, headers: dict[str, str]) -> None:
        message = encode_reply(reply, headers)
        while True:
            try:
                await self._broker.publish(RESPONSES_TOPIC, [message])
            except BrokerUnavailable as error:
                log.warning("reply not published yet", message=reply.to.id, error=str(error))
                await asyncio.sleep(_BROKER_RETRY_S)
            else:
                return

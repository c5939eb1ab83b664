"""An event loop whose time is virtual, and the processes on it, which may be killed or frozen between any two steps."""

import asyncio
import contextvars
import itertools
import logging
import random
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from typing import TypeVar, cast

import structlog

Answer = TypeVar("Answer")

EPOCH = 1_700_000_000.0
process_now: contextvars.ContextVar["Process | None"] = contextvars.ContextVar("process", default=None)


class Stuck(Exception):
    """Nothing will ever happen again, although somebody still waits."""


class Process:
    """What dies together: all tasks and callbacks that began in its context. `skew_s` is what its clock is off by."""

    def __init__(self, name: str, skew_s: float) -> None:
        self.name = name
        self.skew_s = skew_s
        self.dead = False
        self.frozen = False
        self.thawed_at = 0.0
        self.dies_at_step: int | None = None
        self.died = asyncio.Event()
        self.stopping = asyncio.Event()
        self._steps = 0
        self._held: list[tuple[contextvars.Context, Callable[..., object], tuple[object, ...]]] = []

    def step(self, callback: Callable[..., object], args: tuple[object, ...]) -> None:
        """One turn of one of its tasks, if it lives to see it."""
        if not self.dead and not self.frozen:
            self._steps += 1
            if self.dies_at_step is not None and self._steps >= self.dies_at_step:
                self.kill()
        if self.dead or self.frozen:
            self._held.append((contextvars.copy_context(), callback, args))
        else:
            callback(*args)

    def kill(self) -> None:
        """SIGKILL: what is in its memory is gone, what it has sent is on its way."""
        self.dead = True
        contextvars.Context().run(self.died.set)

    def dies_in(self, steps: int) -> None:
        """SIGKILL so many steps from now, wherever it then is."""
        self.dies_at_step = self._steps + steps

    def thaw(self) -> None:
        """Goes on where `frozen` stopped it, late."""
        self.frozen = False
        loop = asyncio.get_running_loop()
        self.thawed_at = loop.time()
        if not self.dead:
            self.flush(loop)

    def flush(self, loop: asyncio.AbstractEventLoop) -> None:
        """Does what has been held back."""
        held, self._held = self._held, []
        for context, callback, args in held:
            loop.call_soon(callback, *args, context=context)


class _Task(asyncio.Task):  # type: ignore[type-arg]
    """A task with a number, so that sets of tasks have the same order in every run."""

    _numbers = itertools.count()

    def __init__(self, *args: object, **options: object) -> None:
        self._number = next(self._numbers)
        super().__init__(*args, **options)  # type: ignore[arg-type]

    __hash__ = lambda self: self._number  # noqa: E731 - asyncio.Task has no other state to compare


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs what is ready; when nothing is, it is at once as late as the next timer says."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.steps = 0
        self.closing = False
        self._selector = self
        self.processes: dict[Process, None] = {}  # in the order of their starts
        self._tasks: list[asyncio.Task[object]] = []
        _Task._numbers = itertools.count()
        self.set_task_factory(self._task)
        self.set_exception_handler(lambda _loop, _context: None)

    def _task(
        self,
        loop: asyncio.AbstractEventLoop,
        coro: Coroutine[object, object, object] | Generator[object, None, object],
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[object]:
        task: asyncio.Task[object] = _Task(coro, loop=loop, context=context)
        self._tasks.append(task)
        return task

    def time(self) -> float:
        return self.now

    def select(self, timeout: float | None) -> list[object]:
        """In the selector's stead: nobody outside can wake this loop."""
        if timeout is None:
            raise Stuck
        self.now += timeout
        return []

    def call_soon(  # type: ignore[override]
        self,
        callback: Callable[..., object],
        *args: object,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        return super().call_soon(self._step, callback, args, context=context)

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., object],
        *args: object,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        return super().call_at(when, self._step, callback, args, context=context)

    def _step(self, callback: Callable[..., object], args: tuple[object, ...]) -> None:
        self.steps += 1
        process = process_now.get()
        if process is None or self.closing:
            callback(*args)
        else:
            process.step(callback, args)

    def bury(self) -> None:
        """Ends the tasks that the dead have left, so that nothing of this history is told in the next."""
        self.closing = True
        for process in self.processes:
            process.flush(self)
        for _ in range(50):
            left = [task for task in self._tasks if not task.done()]
            if not left:
                break
            for task in left:
                task.cancel()
            self.run_until_complete(asyncio.sleep(1.0))
        self.run_until_complete(self.shutdown_asyncgens())
        self.close()

    def _process_events(self, event_list: list[object]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass


def started(process: Process, main: Callable[[], Coroutine[object, object, Answer]]) -> asyncio.Task[Answer]:
    """`main` as a task of `process`."""
    loop = cast("VirtualLoop", asyncio.get_running_loop())
    loop.processes[process] = None
    context = contextvars.copy_context()
    context.run(process_now.set, process)
    task: asyncio.Task[Answer] = loop.create_task(main(), context=context)
    return task


class _Clocks:
    """The module `time` for the code under test: virtual, and a little off in each process."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def time(self) -> float:
        process = process_now.get()
        return EPOCH + self._loop.now + (process.skew_s if process else 0.0)

    def monotonic(self) -> float:
        return self._loop.now

    def __getattr__(self, name: str) -> object:
        return getattr(time, name)


@contextmanager
def simulated(seed: int) -> Iterator[VirtualLoop]:
    """A loop on which the product's clocks, uids and jitter come from `seed`, and its log goes nowhere."""
    loop = VirtualLoop()
    numbers = itertools.count(1)
    seams = {"time": _Clocks(loop), "new_uid": lambda: f"{next(numbers):032x}"}
    patched = [
        (module, name, vars(module)[name])
        for key, module in list(sys.modules.items())
        if key.partition(".")[0] in ("travelrec", "travelrec_api", "travelrec_worker")
        for name in seams
        if name in vars(module)
    ]
    log, jitter = structlog.get_config(), random.getstate()
    for module, name, _ in patched:
        setattr(module, name, seams[name])
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    random.seed(seed)
    try:
        yield loop
        loop.bury()
    finally:
        random.setstate(jitter)
        structlog.configure(**log)
        for module, name, original in patched:
            setattr(module, name, original)


def driven(call: Awaitable[Answer]) -> Answer:
    """What a coroutine that waits for nothing answers."""
    try:
        call.__await__().send(None)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    raise AssertionError("the simulated server waited")

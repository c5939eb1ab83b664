"""Real tests: when they run, the servers they share, and a line at the end that says what they ran on."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import psutil
import pytest
from hypothesis import settings

from support import Kafka, Mongo, Process, Prometheus, RabbitMQ, Redis, Registry, Server
from support.installed import NEEDS, OPTIONAL, chromium
from support.watchdog import Watchdog

MODES = ("auto", "require", "off")
# A test that uses one of these fixtures, directly or not, is a real test and needs what stands here.
NEEDED_BY_FIXTURE = {
    "kafka_server": "kafka",
    "new_kafka": "kafka",
    "mongo_server": "mongo",
    "new_mongo": "mongo",
    "registry_server": "registry",
    "new_registry": "registry",
    "redis_server": "redis",
    "new_redis": "redis",
    "rabbitmq_server": "rabbitmq",
    "new_rabbitmq": "rabbitmq",
    "new_prometheus": "prometheus",
    "chromium_path": "chromium",
}
S = TypeVar("S", bound=Server)
needs_key = pytest.StashKey[dict[str, set[str]]]()  # test id → what it needs
deselected_key = pytest.StashKey[Counter[str]]()  # why → how many tests


# --- which tests run ---------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--real",
        choices=MODES,
        default=os.environ.get("TRAVELREC_TEST_REAL", "auto"),
        help="real tests: auto = where the servers are installed, require = fail where one is missing, off; "
        "default from TRAVELREC_TEST_REAL, else auto",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--real") not in MODES:
        raise pytest.UsageError(f"TRAVELREC_TEST_REAL is none of {', '.join(MODES)}")
    config.stash[needs_key] = {}
    config.stash[deselected_key] = Counter()
    settings.register_profile("travelrec", deadline=None)  # a busy machine is no failure
    settings.load_profile("travelrec")


def missing_by_need(config: pytest.Config) -> dict[str, str | None]:
    """For each need: what is missing for it, None when nothing is."""
    if config.getoption("--real") == "off":
        return dict.fromkeys(NEEDS, "they are off (--real=off)")
    return {name: missing() for name, (_, missing) in NEEDS.items()}


def pytest_report_header(config: pytest.Config) -> list[str]:
    mode = config.getoption("--real")
    if mode == "off":
        return ["real tests: off (--real=off)"]
    problems = missing_by_need(config)
    there = [NEEDS[name][0] for name, problem in problems.items() if problem is None]
    return [
        f"real tests: on {', '.join(there)} (--real={mode})",
        *(f"real tests: off for {problem}" for problem in problems.values() if problem),
    ]


def needs_of(item: pytest.Item) -> set[str]:
    """What a test needs: by its fixtures, by the names in its marks, or else Kafka and MongoDB."""
    fixtures = getattr(item, "fixturenames", ())
    needs = {need for fixture, need in NEEDED_BY_FIXTURE.items() if fixture in fixtures}
    for mark in item.iter_markers("real"):
        needs |= set(mark.args)
    if unknown := needs - NEEDS.keys():
        raise pytest.UsageError(f"{item.nodeid}: real{tuple(unknown)} is none of {', '.join(NEEDS)}")
    if not needs and item.get_closest_marker("real"):
        needs = {"kafka", "mongo"}
    return needs


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    """Mark the real tests before `-m` selects, then take out those that miss something."""
    needs = config.stash[needs_key]
    for item in items:
        if needed := needs_of(item):
            needs[item.nodeid] = needed
            if item.get_closest_marker("real") is None:
                item.add_marker("real")
    yield
    problems = missing_by_need(config)
    reasons = {item: [p for need in needs.get(item.nodeid, ()) if (p := problems[need])] for item in items}
    blocked = [item for item in items if reasons[item]]
    if config.getoption("--real") == "require":
        required = {problems[need] for item in blocked for need in needs[item.nodeid] - OPTIONAL} - {None}
        if required:
            raise pytest.UsageError("--real=require, but " + "; ".join(sorted(map(str, required))))
    if blocked:
        config.stash[deselected_key].update(reasons[item][0] for item in blocked)
        items[:] = [item for item in items if not reasons[item]]
        config.hook.pytest_deselected(items=blocked)


# --- what is said and checked at the end -------------------------------------------------------------


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.option.collectonly:
        return
    passed = [report.nodeid for report in terminalreporter.getreports("passed") if report.when == "call"]
    needs = config.stash[needs_key]
    real = [nodeid for nodeid in passed if nodeid in needs]
    used = set().union(*(needs[nodeid] for nodeid in real))
    titles = ", ".join(title for name, (title, _) in NEEDS.items() if name in used)
    summary = f"{len(real)} passed on {titles}" if real else "none passed"
    terminalreporter.write_line(f"real tests: {summary}; {len(passed) - len(real)} embedded")
    for reason, count in config.stash[deselected_key].items():
        terminalreporter.write_line(f"real tests not run: {count}: {reason}", yellow=True)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """A test session that leaves a process behind has failed."""
    Watchdog.dismiss()
    left = [child for child in psutil.Process().children(recursive=True) if is_left_behind(child)]
    if left:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        print("\nleft behind by the tests:", *(f"{child.pid} {child.name()}" for child in left))


def is_left_behind(child: psutil.Process) -> bool:
    """Whether a child of ours still runs; multiprocessing's own helper ends with us."""
    try:
        return child.status() != psutil.STATUS_ZOMBIE and "resource_tracker" not in " ".join(child.cmdline())
    except psutil.Error:
        return False


# --- servers that all tests share: use topics, groups and databases named by `unique_name` ------------


@pytest.fixture(scope="session")
def kafka_server() -> Iterator[Kafka]:
    with Kafka() as server:
        yield server


@pytest.fixture(scope="session")
def mongo_server() -> Iterator[Mongo]:
    with Mongo() as server:
        yield server


@pytest.fixture(scope="session")
def registry_server() -> Iterator[Registry]:
    with Registry() as server:
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Redis]:
    with Redis() as server:
        yield server


@pytest.fixture(scope="session")
def rabbitmq_server() -> Iterator[RabbitMQ]:
    with RabbitMQ() as server:
        yield server


@pytest.fixture(scope="session")
def chromium_path() -> Path:
    path = chromium()
    assert path is not None, "the selection of real tests lets no test without a browser come here"
    return Path(path)


# --- servers and processes of one test: to kill, freeze and restart ------------------------------------


def servers_of_one_test(kind: type[S]) -> Iterator[Callable[..., S]]:
    """Yield a function that starts a server; in the end all are closed, their output is in the report."""
    servers: list[S] = []

    def start(**options: object) -> S:
        servers.append(kind(**options))
        return servers[-1].start()

    yield start
    for server in reversed(servers):
        print(server.story())
        server.close()


@pytest.fixture
def new_kafka() -> Iterator[Callable[..., Kafka]]:
    yield from servers_of_one_test(Kafka)


@pytest.fixture
def new_mongo() -> Iterator[Callable[..., Mongo]]:
    yield from servers_of_one_test(Mongo)


@pytest.fixture
def new_registry() -> Iterator[Callable[..., Registry]]:
    yield from servers_of_one_test(Registry)


@pytest.fixture
def new_redis() -> Iterator[Callable[..., Redis]]:
    yield from servers_of_one_test(Redis)


@pytest.fixture
def new_rabbitmq() -> Iterator[Callable[..., RabbitMQ]]:
    yield from servers_of_one_test(RabbitMQ)


@pytest.fixture
def new_prometheus() -> Iterator[Callable[..., Prometheus]]:
    yield from servers_of_one_test(Prometheus)


@pytest.fixture
def new_process() -> Iterator[Callable[..., Process]]:
    """Start processes like `Process(...)`; in the end all are closed, their output is in the report."""
    processes: list[Process] = []

    def start(command: list[str | Path], **options: object) -> Process:
        processes.append(Process(command, **options).start())
        return processes[-1]

    yield start
    for process in reversed(processes):
        process.close()
        print(process.story("last said"))

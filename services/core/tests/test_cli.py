"""The command line as an operator sees it: real processes, their exit codes and what they say."""

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import textwrap
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from support import Process, eventually, free_port
from travelrec.cli import embedded, main, processes
from travelrec.cli.addresses import http_url

TRAVELREC = Path(sys.executable).with_name("travelrec")
COMMANDS = ("demo", "serve", "api", "worker", "ask", "doctor", "top", "topics", "fake-openai", "fake-tasks")
SECRET = "hunter2-sk-secret"
UID = re.compile(r"[0-9a-f]{32}")


def ran(*arguments, cwd, **env):
    """A command that ends by itself: its exit code, stdout and stderr."""
    clean = Process(["x"]).env
    done = subprocess.run(
        [TRAVELREC, *map(str, arguments)],
        cwd=cwd,
        env={**clean, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def run_here(capsys, monkeypatch, tmp_path):
    """Like `ran`, inside this process, which is quicker: for commands that end before they start anything."""
    for module in (processes, embedded):
        monkeypatch.setattr(module, "configure_logging", lambda _: None)  # it would stay for all other tests

    def run(*arguments, **env):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["travelrec", *map(str, arguments)])
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return run


def one_line(done, code):
    """The only line on stderr of a command that ended with `code` and had nothing to say on stdout."""
    returncode, out, err = done
    assert (returncode, out) == (code, ""), (out, err)
    (line,) = err.splitlines()
    assert line.startswith("travelrec: ")
    return line


@asynccontextmanager
async def serving(new_process, folder, *arguments, **env):
    """`travelrec serve` on a port of its own, and a client of it."""
    port = free_port()
    process = new_process(
        [TRAVELREC, "serve", "--port", str(port), "--data", folder, *arguments], env=env, name="serve"
    )
    await process.wait_for_http(f"http://127.0.0.1:{port}/healthz")
    async with aiohttp.ClientSession(
        f"http://127.0.0.1:{port}", timeout=aiohttp.ClientTimeout(total=30.0)
    ) as http:
        yield process, http


async def asked(http, country="CA"):
    """The uid of an accepted request."""
    async with http.post(f"/recommendations?country={country}&season=winter") as response:
        assert response.status == 202
        return (await response.json())["uid"]


async def read(http, uid, wait_s=0):
    """The body of a job."""
    async with http.get(f"/recommendations?uid={uid}&wait={wait_s}") as response:
        return await response.json()


# --- help and bad usage --------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command, run_here):
    """--help exits 0, names the command and says what it does."""
    code, out, err = run_here(command, "--help")
    assert (code, err) == (0, "")
    assert f"travelrec {command}" in out
    assert "--help" in out


def test_nothing_counts_before_a_command_has_begun():
    """`travelrec api` says where its processes share their metrics before the library that looks for it is there."""
    looked = "import sys, travelrec.cli; sys.exit('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", looked], check=False, timeout=60).returncode == 0


def test_help_lists_every_command(run_here):
    """`travelrec --help` exits 0; `travelrec` alone shows the same, as bad usage."""
    code, out, _ = run_here("--help")
    assert code == 0
    assert all(re.search(rf"\b{command}\b", out) for command in COMMANDS)
    alone = run_here()
    assert alone[0] == 2
    assert alone[1].split() == out.split()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nope"], "nope"),
        (["--nope"], "--nope"),
        (["serve", "--nope"], "--nope"),
        (["serve", "--port", "abc"], "--port"),
        (["serve", "--port", "65536"], "PORT"),
        (["serve", "--port"], "--port"),
        (["serve", "extra"], "extra"),
        (["ask"], "country"),
        (["ask", "Canada"], "season"),
        (["api", "--port", "-1"], "PORT"),
        (["fake-openai", "--fault", "nope"], "nope"),
        (["fake-openai", "--error-rate", "2"], "--error-rate"),
        (["fake-tasks", "--rate-limit", "0"], "--rate-limit"),
    ],
)
def test_bad_usage_is_one_clear_line(arguments, told, run_here):
    """Exit code 2, and a line on stderr that names what is wrong."""
    assert told in one_line(run_here(*arguments), 2)


def test_an_unknown_role_is_one_line(tmp_path):
    """Exit code 2, naming those that there are."""
    line = one_line(ran("worker", "nope", cwd=tmp_path, METRICS_PORT=str(free_port())), 2)
    assert "nope" in line
    assert "jobs" in line


@pytest.mark.parametrize("command", ["serve", "demo", "api", "worker"])
def test_bad_settings_are_one_line_that_names_them_all_and_no_secret(command, run_here):
    """Exit code 2; each variable by the name it was set by, never its value."""
    bad = {
        "KAFKA_BOOTSTRAP_SERVERS": f"redis://:{SECRET}@host",
        "MONGODB_URL": f"{SECRET}://host",
        "SIGNAL_URL": f"nope://:{SECRET}@host",
        "OPENAI_BASE_URL": f"ftp://{SECRET}",
        "PORT": "abc",
        "WEB_CONCURRENCY": "0",
        "METRICS_PORT": "70000",
        "WORKER_CONCURRENCY": "many",
        "LOG_LEVEL": "loud",
    }
    line = one_line(run_here(command, **bad, OPENAI_API_KEY=SECRET), 2)
    named = re.findall(r"\b([A-Z_]{4,}): ", line)
    if command == "demo":
        bad.pop("MONGODB_URL")  # it keeps its data in a folder of its own
    assert set(named) >= set(bad)
    assert SECRET not in line


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("STORE_URL", "sqlite://relative.db"),
        ("STORE_URL", "sqlite:///"),
        ("STORE_URL", "mongodb://"),
        ("STORE_URL", "jobs.db"),
        ("BROKER_URL", "kafka://"),
        ("BROKER_URL", "http://127.0.0.1"),
    ],
)
def test_a_url_that_names_nothing_is_one_line(variable, value, run_here):
    """A scheme that is not known, or nothing behind it."""
    assert f"{variable}: " in one_line(run_here("worker", **{variable: value}), 2)


@pytest.mark.parametrize("command", ["api", "worker"])
def test_a_url_that_only_its_driver_refuses_is_one_line(command, tmp_path):
    """It is said before any process is forked, without the password."""
    url = f"mongodb://user:{SECRET}@host:notaport/db"
    env = {"STORE_URL": url, "BROKER_URL": "kafka://127.0.0.1:1", "OPENAI_API_KEY": SECRET}
    ports = {"METRICS_PORT": str(free_port()), "PORT": str(free_port())}
    line = one_line(ran(command, cwd=tmp_path, **env, **ports), 2)
    assert "STORE_URL: " in line
    assert SECRET not in line


@pytest.mark.parametrize("command", ["api", "worker"])
def test_processes_of_a_deployment_need_servers(command, tmp_path):
    """Without any setting they say what to set, or what to use instead."""
    line = one_line(ran(command, cwd=tmp_path, METRICS_PORT=str(free_port())), 2)
    assert "BROKER_URL" in line
    assert "STORE_URL" in line
    assert "travelrec serve" in line


def test_a_worker_without_a_model_says_what_to_set(tmp_path):
    """The offline model is for one process; a deployment names its own."""
    env = {"STORE_URL": "mongodb://127.0.0.1:1/x", "BROKER_URL": "kafka://127.0.0.1:1"}
    line = one_line(ran("worker", cwd=tmp_path, METRICS_PORT=str(free_port()), **env), 2)
    assert "OPENAI_API_KEY" in line


def test_settings_are_read_from_a_file_too(tmp_path):
    """A `.env` in the working folder counts, and is complained about by the variable's name."""
    (tmp_path / ".env").write_text("PORT=abc\n")
    assert "PORT: " in one_line(ran("serve", cwd=tmp_path), 2)


# --- what is missing or taken --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "variable"),
    [
        (["serve"], "PORT"),
        (["demo"], "PORT"),
        (["api"], "PORT"),
        (["worker"], "METRICS_PORT"),
        (["fake-openai"], None),
    ],
)
def test_a_taken_port_is_one_line(arguments, variable, tmp_path):
    """Exit code 1, with the address and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        env = {
            "STORE_URL": "mongodb://127.0.0.1:1/x",
            "BROKER_URL": "kafka://127.0.0.1:1",
            "OPENAI_API_KEY": "x",
        }
        if arguments == ["serve"]:
            env = {}
        if variable is None:
            arguments = [*arguments, "--port", port]
        else:
            env[variable] = port
        code, out, err = ran(*arguments, cwd=tmp_path, **env)
        assert (code, out) == (1, "")
        (line,) = err.splitlines()
        assert f"127.0.0.1:{port}" in line
        assert (variable or "--port") in line


DEPLOYED = {
    "STORE_URL": "mongodb://127.0.0.1:1/x",
    "BROKER_URL": "kafka://127.0.0.1:1",
    "OPENAI_API_KEY": "x",
    "PORT": "0",
    "METRICS_PORT": "0",
}


@pytest.mark.parametrize("host", ["nosuch.invalid", "a..b", "192.0.2.1", "::nosuch"])
@pytest.mark.parametrize("command", ["serve", "demo", "api", "worker"])
def test_a_host_that_is_not_of_this_machine_is_named(command, host, run_here):
    """Exit code 2: it is HOST that is wrong, and no other port would help."""
    env = DEPLOYED if command in ("api", "worker") else {"PORT": "0"}
    line = one_line(run_here(command, **env, HOST=host), 2)
    assert re.search(rf"\bHOST\b.*: .*{re.escape(host)}", line)
    assert "PORT" not in line


@pytest.mark.parametrize("host", ["nosuch.invalid", "a..b", "192.0.2.1", "::nosuch"])
@pytest.mark.parametrize("command", ["fake-openai", "fake-tasks"])
def test_a_host_of_an_offline_server_is_named_too(command, host, run_here):
    """Exit code 2, and the option."""
    line = one_line(run_here(command, "--host", host, "--port", 0), 2)
    assert "--host: " in line
    assert host in line


def test_a_second_serve_on_the_same_data_is_one_line(tmp_path):
    """Two processes on one SQLite file would each miss the other's jobs."""
    port, folder = free_port(), tmp_path / "data"

    async def both():
        with Process([TRAVELREC, "serve", "--port", str(port), "--data", str(folder)]) as first:
            await first.wait_for_http(f"http://127.0.0.1:{port}/healthz")
            second = ["serve", "--port", str(free_port()), "--data", folder]
            return await asyncio.to_thread(ran, *second, cwd=tmp_path)

    line = one_line(asyncio.run(both()), 1)
    assert "in use by another travelrec process" in line


def test_data_that_cannot_be_written_is_one_line(tmp_path):
    """A folder that is none."""
    (tmp_path / "file").write_text("")
    line = one_line(
        ran("serve", "--port", free_port(), "--data", tmp_path / "file" / "data", cwd=tmp_path), 1
    )
    assert "can't be opened" in line


MISSING = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == {package!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
sys.argv = ["travelrec", *{arguments!r}]
from travelrec.cli import main
main()
"""


@pytest.mark.parametrize(
    ("arguments", "package", "told"),
    [
        (["api"], "aiokafka", "travelrec-core[kafka]"),
        (["worker"], "aiokafka", "travelrec-core[kafka]"),
        (["api"], "pymongo", "travelrec-core[mongo]"),
        (["worker"], "pymongo", "travelrec-core[mongo]"),
        (["api"], "travelrec_api", "travelrec-api"),
        (["serve"], "travelrec_api", "travelrec-api"),
        (["demo"], "travelrec_worker", "travelrec-worker"),
        (["worker"], "travelrec_worker", "travelrec-worker"),
    ],
)
def test_a_missing_package_is_one_line(arguments, package, told, tmp_path):
    """Exit code 2, naming what to install."""
    code = textwrap.dedent(MISSING).format(package=package, arguments=arguments)
    env = {"PORT": str(free_port()), "METRICS_PORT": str(free_port()), "OPENAI_API_KEY": "x"}
    if arguments[0] in ("api", "worker"):
        env |= {"STORE_URL": "mongodb://127.0.0.1:1/x", "BROKER_URL": "kafka://127.0.0.1:1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**Process(["x"]).env, **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert told in one_line((done.returncode, done.stdout, done.stderr), 2)


# --- ask and demo --------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}", "http://no.such.host.invalid"])
def test_ask_says_when_no_api_answers(url, tmp_path):
    """Exit code 1 and one line that says how to start one."""
    line = one_line(ran("ask", "Canada", "winter", "--url", url.format(port=free_port()), cwd=tmp_path), 1)
    assert "travelrec serve" in line


ASKING = {
    "ask": ("ask", "Canada", "winter"),
    "talk": ("chat", "talk", "alice"),
    "top": ("top", "--once"),
    "doctor": ("doctor",),
    "schedule": ("trips", "schedule", "--with", "asyncio", "--for", "0.1"),
}


@pytest.mark.parametrize("command", ASKING.values(), ids=ASKING)
@pytest.mark.parametrize(
    "url", ["nonsense", "ftp://h", "http://", "http://[::1", f"http://u:{SECRET}@h:port", "http://a,b"]
)
def test_what_can_be_no_address_is_bad_usage(command, url, run_here):
    """Exit code 2, and no attempt; a password is not said back."""
    line = one_line(run_here(*command, "--url", url), 2)
    assert line.startswith("travelrec: --url: use http://host:port")
    assert SECRET not in line


@pytest.mark.parametrize("command", ["ask", "top", "doctor"])
def test_a_password_in_an_address_is_not_shown(command, tmp_path):
    """Where nobody answers the address is named without it."""
    address = f"127.0.0.1:{free_port()}"
    code, out, err = ran(*ASKING[command], "--url", f"http://u:{SECRET}@{address}", cwd=tmp_path)
    assert code == 1
    assert f"http://{address}" in out + err
    assert SECRET not in out + err


def test_ask_takes_brackets_for_what_they_are(tmp_path):
    """What is asked is text, not markup of the terminal."""
    url = f"http://127.0.0.1:{free_port()}"
    assert "travelrec serve" in one_line(ran("ask", "[/x]", "winter", "--url", url, cwd=tmp_path), 1)


@pytest.mark.parametrize("scheduler", ["asyncio", "apscheduler"])
@pytest.mark.parametrize("for_s", ["inf", "1e300", "nan"])
def test_a_schedule_has_an_end(scheduler, for_s, run_here):
    """Exit code 2 for one that has none, naming the option."""
    assert "--for" in one_line(run_here("trips", "schedule", "--with", scheduler, "--for", for_s), 2)


def test_the_address_of_a_chat_may_be_that_of_its_socket():
    """`ws://` as the contract has it."""
    assert http_url("wss://h:8080/") == "https://h:8080"
    assert http_url("ws://h") == "http://h"


def test_dead_letters_say_which_store_is_away(tmp_path):
    """One short line with the address and the next step."""
    url = f"mongodb://user:{SECRET}@127.0.0.1:{free_port()}/trips"
    line = one_line(
        ran(
            "dead-letters",
            "list",
            cwd=tmp_path,
            STORE_URL=url,
            BROKER_URL="kafka://h:1",
            NEIGHBOUR_TIMEOUT="0.3",
        ),
        1,
    )
    assert "STORE_URL" in line
    assert "travelrec doctor" in line
    assert "Topology" not in line
    assert SECRET not in line


def three(out, heading):
    """The recommendations on stdout, a line each, below the heading."""
    first, *lines = out.splitlines()
    assert first == heading
    assert [line[:4] for line in lines] == [" 1. ", " 2. ", " 3. "]
    return [line[4:] for line in lines]


def test_demo_once_prints_three_recommendations_and_ends(tmp_path):
    """Exit code 0, offline and without any setting; it says that the model is the offline one."""
    code, out, err = ran("demo", "--once", cwd=tmp_path)
    assert code == 0, err
    assert len(set(three(out, "Canada in winter"))) == 3
    assert "offline model" in err
    assert not list(tmp_path.iterdir()), "a demo leaves nothing behind"


def test_demo_takes_a_country_and_a_season(tmp_path):
    """They are those of the API, spelling and all."""
    code, out, err = ran("demo", "--once", "--country", "ivory coast", "--season", "fall", cwd=tmp_path)
    assert code == 0, err
    three(out, "Côte d'Ivoire in autumn")


@pytest.mark.parametrize("option", [["--country", "Canda"], ["--season", "rainy"]])
def test_demo_says_what_the_api_refuses(option, tmp_path):
    """Exit code 1, and the API's own words as the last line."""
    code, out, err = ran("demo", "--once", *option, cwd=tmp_path)
    assert (code, out) == (1, "")
    assert "Traceback" not in err
    assert re.match(r"travelrec: Invalid request: .*(Canada|spring)", err.splitlines()[-1])


@pytest.mark.asyncio
async def test_demo_serves_on_until_it_is_stopped(new_process):
    """Without --once the API stays; Ctrl-C ends it with exit code 0."""
    port = free_port()
    demo = new_process([TRAVELREC, "demo", "--port", str(port)], name="demo")
    await demo.wait_for_line(r" 3\. ")
    await demo.wait_for_http(f"http://127.0.0.1:{port}/healthz")
    demo.signal(signal.SIGINT)
    assert await demo.wait(10) == 0
    assert not demo.lines("Traceback")


@pytest.mark.asyncio
async def test_ask_prints_what_the_api_answers(new_process, tmp_path):
    """Three lines on stdout; a refusal is exit code 1 and one line."""
    async with serving(new_process, tmp_path / "data") as (_, http):
        url = str(http._base_url)
        code, out, err = await asyncio.to_thread(ran, "ask", "UK", "SUMMER", "--url", url, cwd=tmp_path)
        assert code == 0, err
        three(out, "United Kingdom in summer")
        code, out, err = await asyncio.to_thread(
            ran, "ask", "Canda", "winter", cwd=tmp_path, TRAVELREC_URL=url
        )
        assert (code, out) == (1, "")
        assert "Did you mean Canada" in err.splitlines()[-1]


# --- serve ---------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_serve_without_settings_says_what_it_does(new_process, tmp_path):
    """One process, the data in SQLite and where, the offline model: each is said at start."""
    process = new_process([TRAVELREC, "serve", "--port", str(port := free_port())], cwd=tmp_path)
    await process.wait_for_http(f"http://127.0.0.1:{port}/healthz")
    await process.wait_for_line(rf"Serving http://localhost:{port} .*http://localhost:{port}/docs")
    assert process.lines(re.escape(str(tmp_path / ".travelrec" / "travelrec.db")))
    assert process.lines("offline model")
    assert (tmp_path / ".travelrec" / "travelrec.db").exists()


@pytest.mark.asyncio
async def test_serve_names_a_folder_with_brackets_as_it_is(new_process, tmp_path):
    """A path is text, not markup of the terminal."""
    folder = tmp_path / "[" / "x] [red]"
    async with serving(new_process, folder) as (process, _):
        assert process.lines(re.escape(f"Jobs are kept in {folder / 'travelrec.db'},"))


@pytest.mark.asyncio
@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
async def test_serve_ends_cleanly_with_a_stream_and_a_long_poll_open(sign, new_process, tmp_path):
    """Within seconds and with exit code 0: the poll is answered, the stream closed, the job kept."""
    with Process([TRAVELREC, "fake-openai", "--port", str(model := free_port()), "--fault", "hang"]) as fake:
        await fake.wait_for_http(f"http://127.0.0.1:{model}/healthz")
        env = {"OPENAI_BASE_URL": f"http://127.0.0.1:{model}/v1", "SHUTDOWN_GRACE": "0.2"}
        async with serving(new_process, tmp_path / "data", **env) as (process, http):
            uid = await asked(http)
            poll = asyncio.create_task(read(http, uid, 60))
            async with http.get(f"/recommendations/events?uid={uid}") as stream:
                assert await stream.content.readline() == b"event: pending\n"
                await waiters(http, 2)
                process.signal(sign)
                rest = (await stream.content.read()).decode()
                assert "event:" not in rest
            assert (await poll)["status"] == "pending"
            assert await process.wait(8) == 0
        assert process.lines("api stopped")
        assert not process.lines("Traceback|Cancel .* running task")
        async with serving(new_process, tmp_path / "data", **env) as (_, http):
            assert (await read(http, uid))["status"] == "pending"


async def waiters(http, number):
    """Returns when so many wait for jobs."""

    async def counted():
        async with http.get("/metrics") as response:
            return f"travelrec_waiters {number}.0\n" in await response.text()

    await eventually(counted, 10, f"{number} waiters")


@pytest.mark.asyncio
async def test_jobs_of_a_killed_serve_complete_after_the_next_start(new_process, tmp_path):
    """SIGKILL with jobs accepted and running: none is lost, and each is answered under its uid."""
    with Process([TRAVELREC, "fake-openai", "--port", str(model := free_port())]) as fake:
        base = f"http://127.0.0.1:{model}"
        await fake.wait_for_http(f"{base}/healthz")
        env = {"OPENAI_BASE_URL": f"{base}/v1", "WORKER_CONCURRENCY": "3"}
        async with aiohttp.ClientSession() as control:
            await control.post(f"{base}/control", data=json.dumps({"faults": {"hang": 1.0}}))
            async with serving(new_process, tmp_path / "data", **env) as (process, http):
                uids = [
                    await asked(http, country) for country in ("AT", "BR", "CA", "DE", "ES", "FR", "GR", "IT")
                ]

                async def running():
                    async with control.get(f"{base}/stats") as response:
                        return (await response.json())["in_flight"] == 3

                await eventually(running)
                process.kill()
            await control.post(f"{base}/control", data=json.dumps({"faults": {}}))
        async with serving(new_process, tmp_path / "data", **env) as (_, http):
            bodies = await asyncio.gather(*(read(http, uid, 30) for uid in uids))
        assert {body["status"] for body in bodies} == {"completed"}
        assert [body["uid"] for body in bodies] == uids


@pytest.mark.parametrize(
    ("role", "env", "told"),
    [
        ("submit", {}, "TASKS_PROVIDER_URL"),
        ("poll", {}, "TASKS_PROVIDER_URL"),
        ("poll", {"TASKS_PROVIDER": "openai-batch"}, "OPENAI_API_KEY"),
    ],
)
def test_a_role_without_its_third_party_says_what_to_set(role, env, told, tmp_path):
    """Named explicitly it is bad usage, in one line; the servers need not be there."""
    servers = {
        "BROKER_URL": "kafka://127.0.0.1:9",
        "STORE_URL": "mongodb://127.0.0.1:9/x",
        "METRICS_PORT": "0",
    }
    assert told in one_line(ran("worker", role, cwd=tmp_path, **servers, **env), 2)

"""The kind `prediction`: the model function that is named, what it may be, and what becomes of its results."""

import asyncio
import json
import threading
from pathlib import Path

import pytest

from support import eventually
from travelrec.errors import BadSetting, BrokenOutput, ModelTimeout, NotTheJobsFault
from travelrec.fake_openai import FakeSettings, running
from travelrec.kinds import kinds
from travelrec.kinds.prediction import NAME, run
from travelrec.kinds.prediction.run import MAX_RESULT_BYTES, Prediction
from travelrec.ports import Answer, Question
from travelrec.settings import Settings

NOBODY = None  # no chat model


def named(name: str = "", **settings: object) -> Prediction:
    return Prediction.named(
        Settings(prediction_model=name, prediction_latency_s=0, **settings, _env_file=None)
    )


async def result(prediction: Prediction, text: str = "hello", timeout_s: float = 5.0) -> object:
    return json.loads((await prediction.run({"input": text}, NOBODY, timeout_s))["json"])


@pytest.mark.asyncio
async def test_the_mock_depends_on_its_input_alone() -> None:
    """The same input gives the same result at any time, another input another one."""
    one, other = named(), named()
    assert await result(one) == await result(other)
    assert len({await result(one, f"text {n}") for n in range(50)}) > 45


@pytest.mark.asyncio
async def test_the_mock_takes_its_time() -> None:
    """PREDICTION_LATENCY is waited for, so that a shorter time limit is a model's time-out."""
    slow = Prediction.named(Settings(prediction_latency_s=30, _env_file=None))
    with pytest.raises(ModelTimeout):
        await result(slow, timeout_s=0.05)


@pytest.mark.asyncio
async def test_who_never_had_a_place_is_not_to_blame(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function that does not end costs its own job an attempt, and those that wait behind it none."""
    go = threading.Event()
    monkeypatch.setattr(run, "_imported", lambda name: lambda text: go.wait(20) and text)
    one = named("a:b", prediction_concurrency=1)
    with pytest.raises(ModelTimeout):
        await result(one, "first", timeout_s=0.05)
    with pytest.raises(NotTheJobsFault):
        await result(one, "second", timeout_s=0.05)
    go.set()
    assert await result(one, "second") == "second"


@pytest.mark.asyncio
async def test_plain_functions_run_in_threads_up_to_a_limit() -> None:
    """So many at a time and no more; the event loop goes on, and one that nobody waits for keeps its place."""
    go, names, most = threading.Event(), set(), 0

    def predict(text: str) -> str:
        nonlocal most
        names.add(threading.current_thread().name)
        running_now.append(text)
        most = max(most, len(running_now))
        go.wait(20)
        running_now.remove(text)
        return text.upper()

    running_now: list[str] = []
    prediction = Prediction(predict, threads=2)
    tasks = [asyncio.create_task(result(prediction, f"n{n}")) for n in range(5)]
    await eventually(lambda: len(running_now) == 2)
    tasks[0].cancel()
    await asyncio.wait(tasks[:1])
    assert len(running_now) == 2, "a thread goes on, and no other has its place"
    go.set()
    assert await asyncio.gather(*tasks[1:]) == ["N1", "N2", "N3", "N4"]
    assert most == 2
    assert threading.main_thread().name not in names


@pytest.mark.asyncio
async def test_what_a_function_raises_comes_out() -> None:
    """Errors of plain and of async functions are theirs, also those that a future would not take."""

    def stops(text: str) -> str:
        raise StopIteration

    async def breaks(text: str) -> str:
        raise ValueError(text)

    with pytest.raises(RuntimeError, match="StopIteration"):
        await result(Prediction(stops, threads=1))
    with pytest.raises(ValueError, match="hello"):
        await result(Prediction(breaks, threads=1))


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "value",
    [object(), float("nan"), {1, 2}, b"bytes", "\ud800", "x" * MAX_RESULT_BYTES],
    ids=["object", "nan", "set", "bytes", "surrogate", "large"],
)
async def test_a_result_is_json(value: object) -> None:
    """What is no JSON, or too large to keep, is an unusable answer, not a broken worker."""
    with pytest.raises(BrokenOutput):
        await result(Prediction(lambda text: value, threads=1))


@pytest.mark.asyncio
@pytest.mark.parametrize("value", [None, 2**80, ["ö", 0.5], {"$set": {"a.b": [True]}}])
async def test_any_json_is_a_result(value: object) -> None:
    """Numbers and names that a store may not take are kept too."""
    assert await result(Prediction(lambda text: value, threads=1)) == value


@pytest.mark.asyncio
async def test_a_function_with_two_arguments_is_given_the_chat_model() -> None:
    """The example asks it, and so waits for its turn at the provider; the others ask none and do not wait."""

    class Happy:
        async def ask(self, question: Question, timeout_s: float) -> Answer:
            return Answer('{"sentiment": "positive"}', "m", 1, 1)

    example = named("travelrec.kinds.prediction.examples:sentiment")
    assert example.asks
    assert await example.run({"input": "nice"}, Happy(), 5.0) == {"json": '"positive"'}
    assert not named().asks
    assert not named("travelrec.kinds.prediction.examples:words").asks
    assert kinds(Settings(_env_file=None))[NAME].asks is False


@pytest.mark.asyncio
async def test_the_example_works_with_the_offline_model() -> None:
    """The offline model answers the example's schema."""
    from travelrec.connect import opened_models

    async with running(FakeSettings()) as fake:
        settings = Settings(openai_base_url=fake.base_url, _env_file=None)
        async with opened_models(settings) as models:
            example = named("travelrec.kinds.prediction.examples:sentiment")
            said = json.loads((await example.run({"input": "nice"}, models[0], 10.0))["json"])
            assert said in ("positive", "neutral", "negative")


def test_functions_of_the_folder_it_is_started_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module beside the .env file is found."""
    (tmp_path / "our_own_model.py").write_text(
        "class Model:\n    def predict(self, text): return 1\nm = Model()\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere"])
    named("our_own_model:m.predict")


@pytest.mark.parametrize(
    "name",
    ["nosuchmodule:f", "json:nosuchfunction", "json:__doc__", "this_module_breaks:f", "sync_with_model:f"],
)
def test_a_model_that_can_not_be_used_is_a_bad_setting(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line that names PREDICTION_MODEL, before any work is taken."""
    (tmp_path / "this_module_breaks.py").write_text("1 / 0\n")
    (tmp_path / "sync_with_model.py").write_text("def f(text, model): return 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(BadSetting, match=r"^PREDICTION_MODEL: [^\n]+$"):
        named(name)

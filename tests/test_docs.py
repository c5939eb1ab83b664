"""What the documentation names exists: commands, tasks, settings, metrics, files."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from opentelemetry.sdk import environment_variables
from prometheus_client.metrics import MetricWrapperBase
from pydantic import AliasChoices
from typer.main import get_command

from travelrec import metrics
from travelrec.cli import app
from travelrec.errors import BadSetting
from travelrec.settings import Settings, read_settings

ROOT = Path(__file__).parents[1]
DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOT_OURS = {"PROMETHEUS_MULTIPROC_DIR", "TRAVELREC_URL", "TRAVELREC_TEST_REAL", "UV_PYTHON_DOWNLOADS"}
PACKAGES = {"travelrec_api", "travelrec_worker"}
FOLDERS = {"services", "tests", "docs", "bench", "charts", "k8s", "loadtest", "observability"}
SUFFIXES = (".py", ".md", ".toml", ".yml", ".yaml", ".json", ".js", ".html", ".lock", ".example", ".sh")

FENCE = re.compile(r"^```.*?\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]+)[^)]*\)")
COMMAND = re.compile(r"(?:^|[\s/])travelrec +([a-z][^\n;&#]*)")
TASK = re.compile(r"(?:^|\s)task +([a-z][a-z:-]*)")
ASSIGNED = re.compile(r"(?:^|\s)([A-Z][A-Z0-9_]+)=(\S*)")
NAMED = re.compile(r"^([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+|HOST|PORT)$")
METRIC = re.compile(r"\btravelrec_[a-z_]+\b")


def code(text: str) -> Iterator[str]:
    """Every code span, and every line of every fenced block without its prompt."""
    for block in FENCE.findall(text):
        yield from (line.strip().removeprefix("$ ") for line in block.splitlines())
    yield from SPAN.findall(FENCE.sub("", text))


@cache
def files() -> frozenset[str]:
    """Every file and folder of the project, as paths from its root."""
    hidden = (".venv", ".git", "__pycache__", ".hypothesis", "node_modules", "_cache")
    found = (path.relative_to(ROOT) for path in ROOT.rglob("*"))
    return frozenset(str(path) for path in found if not any(part.endswith(hidden) for part in path.parts))


def setting_names() -> set[str]:
    """Ours, and OpenTelemetry's own."""
    names = {name for name in vars(environment_variables) if name.startswith("OTEL_")}
    for field in Settings.model_fields.values():
        alias = field.validation_alias
        names |= {str(n) for n in alias.choices} if isinstance(alias, AliasChoices) else {str(alias)}
    return names


def metric_names() -> set[str]:
    names: set[str] = set()
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            names |= {sample.name for family in metric.describe() for sample in family.samples}
            names |= {f"{metric._name}{suffix}" for suffix in ("", "_total", "_bucket", "_sum", "_count")}
    return names


def wrong_words(command: object, words: list[str]) -> list[str]:
    """The subcommands and options among `words` that `command` does not have."""
    commands: dict[str, object] | None = getattr(command, "commands", None)
    if commands is not None and words:
        wrong = []
        for name in words[0].split("|"):
            below = commands.get(name)
            wrong += [name] if below is None else wrong_words(below, words[1:])
        return wrong
    options = {option for parameter in getattr(command, "params", []) for option in parameter.opts} | {
        "--help"
    }
    return [word for word in words if word.startswith("-") and word.split("=")[0].strip("[],") not in options]


@pytest.fixture(params=DOCS, ids=lambda path: str(path.relative_to(ROOT)))
def doc(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_commands_exist(doc: Path) -> None:
    """Each `travelrec …` is a command with these subcommands and options."""
    wrong = []
    for piece in code(doc.read_text()):
        for line in COMMAND.findall(piece):
            wrong += [(line, word) for word in wrong_words(get_command(app), line.split())]
    assert wrong == []


def test_tasks_exist(doc: Path) -> None:
    """Each `task …` is in the Taskfile."""
    there = set(re.findall(r"^  ([a-z:-]+):$", (ROOT / "Taskfile.yml").read_text(), re.MULTILINE))
    named = {name for piece in code(doc.read_text()) for name in TASK.findall(piece)}
    assert named - there == set()


def test_settings_exist(doc: Path) -> None:
    """Each name in capitals is a setting."""
    named = {name for piece in code(doc.read_text()) for name in NAMED.findall(piece)}
    named |= {name for piece in code(doc.read_text()) for name, _ in ASSIGNED.findall(piece)}
    of_compose = set(re.findall(r"\$\{([A-Z0-9_]+)", (ROOT / "docker-compose.yml").read_text()))
    assert named - setting_names() - of_compose - NOT_OURS == set()


def test_shown_values_are_taken(doc: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each `NAME=value` is one that a process starts with."""
    monkeypatch.chdir(tmp_path)
    for piece in code(doc.read_text()):
        for name, value in ASSIGNED.findall(piece):
            with monkeypatch.context() as only_this:
                only_this.setenv(name, value)
                try:
                    read_settings()
                except BadSetting as bad:
                    pytest.fail(f"{name}={value}: {bad}")


def test_metrics_exist(doc: Path) -> None:
    """Each `travelrec_…` is a metric, or a package."""
    named = {name for piece in code(doc.read_text()) for name in METRIC.findall(piece)}
    assert named - PACKAGES - metric_names() == set()


def test_files_exist(doc: Path) -> None:
    """Each path in code is one from the root, from this file, or the end of one that is unmistakable."""
    missing = [path for piece in code(doc.read_text()) for path in paths_in(piece) if not exists(path, doc)]
    assert missing == []


def paths_in(piece: str) -> Iterator[str]:
    """What looks like a file of ours: it ends like one, or begins with one of our folders."""
    for word in piece.split():
        path = word.strip(",;:()").rstrip("/")
        if re.fullmatch(r"[\w.-][\w./-]*", path) and (
            path.endswith(SUFFIXES) or path.split("/")[0] in FOLDERS
        ):
            yield path


def exists(path: str, doc: Path) -> bool:
    if path in files() or (doc.parent / path).exists():
        return True
    return any(known.endswith(f"/{path}") for known in files())


def test_links_lead_somewhere(doc: Path) -> None:
    """Each link to a file leads to one."""
    missing = [target for target in LINK.findall(doc.read_text()) if not (doc.parent / target).exists()]
    assert missing == []


def test_the_parser_sees_what_is_there() -> None:
    """The tests above look at something: the README names commands, tasks, settings and files."""
    pieces = list(code((ROOT / "README.md").read_text()))
    for pattern, least in ((COMMAND, 5), (TASK, 1), (NAMED, 5)):
        assert sum(bool(pattern.search(piece)) for piece in pieces) >= least
    assert sum(1 for piece in pieces for _ in paths_in(piece)) >= 4
    assert LINK.search((ROOT / "README.md").read_text())


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("serve --port 3000 --data DIR", []),
        ("serve --prot 3000", ["--prot"]),
        ("dance", ["dance"]),
        ("ask Japan spring", []),
        ("worker jobs", []),
    ],
)
def test_a_wrong_command_is_seen(line: str, wrong: list[str]) -> None:
    """The check of commands finds a name and an option that are not there."""
    assert wrong_words(get_command(app), line.split()) == wrong

"""What is committed in observability/ fits together: rules, their tests and runbooks, dashboards, configurations."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from travelrec import metrics

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "observability"
RULES = sorted((FOLDER / "prometheus" / "rules").glob("*.yml"))
RULE_TESTS = sorted((FOLDER / "prometheus" / "tests").glob("*.yml"))
DASHBOARDS = sorted((FOLDER / "grafana" / "dashboards").glob("*.json"))
RUNBOOKS = ROOT / "docs" / "operating.md"
NAME = re.compile(r"\btravelrec[a-z_]*_[a-z_]+\b(?!:)")
SEVERITIES = {"page", "ticket"}


def loaded(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


ALL_RULES = [rule for path in RULES for group in loaded(path)["groups"] for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in ALL_RULES if "alert" in rule}
RECORDED = {rule["record"] for rule in ALL_RULES if "record" in rule}


def promtool(*arguments: str | Path) -> str:
    """What promtool says; it must be content."""
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def metric_names() -> set[str]:
    """Every series that the processes can show."""
    names = set()
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(
                metric._type, ("",)
            )
            names |= {metric._name + suffix for suffix in suffixes}
    return names


def heading_anchors(path: Path) -> set[str]:
    """The anchors that a reader's browser knows of a Markdown file."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


# --- rules ---------------------------------------------------------------------------------------------


@pytest.mark.real("prometheus")
def test_rules_and_scrape_configuration_are_valid() -> None:
    """promtool finds nothing to say about them."""
    promtool("check", "rules", *RULES)
    promtool("check", "config", FOLDER / "prometheus" / "prometheus.yml")


@pytest.mark.real("prometheus")
@pytest.mark.parametrize("path", RULE_TESTS, ids=lambda path: path.stem)
def test_rules_do_what_their_tests_say(path: Path) -> None:
    """promtool's own unit tests."""
    assert "SUCCESS" in promtool("test", "rules", path)


@pytest.mark.parametrize("name", ALERTS)
def test_each_alert_is_tested_to_fire_and_to_be_silent(name: str) -> None:
    """In promtool's tests: once with what it says, and once without."""
    tests = [one for path in RULE_TESTS for test in loaded(path)["tests"] for one in test["alert_rule_test"]]
    outcomes = {bool(one.get("exp_alerts")) for one in tests if one["alertname"] == name}
    assert outcomes == {True, False}


@pytest.mark.parametrize("name", ALERTS)
def test_each_alert_says_what_to_do(name: str) -> None:
    """A severity, a summary, and a section of docs/operating.md that is there."""
    alert = ALERTS[name]
    assert alert["labels"]["severity"] in SEVERITIES
    assert alert["annotations"]["summary"]
    path, _, anchor = alert["annotations"]["runbook"].partition("#")
    assert ROOT / path == RUNBOOKS
    assert anchor in heading_anchors(RUNBOOKS)


def test_each_runbook_belongs_to_an_alert() -> None:
    """The sections under "Runbooks" are those of the alerts, so none is for an alert that has gone."""
    text = RUNBOOKS.read_text().partition("\n## Runbooks\n")[2].partition("\n## ")[0]
    headings = set(re.findall(r"^### (.+)$", text, re.MULTILINE))
    anchors = {alert["annotations"]["runbook"].partition("#")[2] for alert in ALERTS.values()}
    assert {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings} == anchors


# --- dashboards ----------------------------------------------------------------------------------------


def generator() -> ModuleType:
    """observability/dashboards.py, which is a script and in no package."""
    spec = importlib.util.spec_from_file_location("travelrec_dashboards", FOLDER / "dashboards.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


# the classic form is what every Grafana from 10 on is provisioned with
@pytest.mark.filterwarnings("ignore:Prefer using dashboardv2:DeprecationWarning")
def test_dashboards_are_as_they_are_generated() -> None:
    """Whoever changes one changes observability/dashboards.py and runs `task dashboards`."""
    made = generator()
    rendered = {f"{board.uid}.json": made.rendered(board) for board in made.DASHBOARDS}
    assert {path.name: path.read_text() for path in DASHBOARDS} == rendered


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboards_are_whole(path: Path) -> None:
    """Every panel has a title, a query with a legend and a place of its own."""
    board = json.loads(path.read_text())
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    places: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["title"]
        assert panel["targets"]
        assert all(target["expr"] and target["legendFormat"] for target in panel["targets"])
        at = panel["gridPos"]
        taken = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert max(x for x, _ in taken) < 24
        assert not taken & places
        places |= taken


# --- names ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", [*RULES, *RULE_TESTS, *DASHBOARDS], ids=lambda path: f"{path.parent.name}/{path.name}"
)
def test_only_metrics_that_there_are_are_asked_for(path: Path) -> None:
    """Each `travelrec_…` is a series of the list, each `travelrec:…` is recorded."""
    if path.suffix == ".json":
        board = json.loads(path.read_text())
        asked = " ".join(t["expr"] for panel in board["panels"] for t in panel.get("targets", ()))
    else:
        asked = path.read_text()
    assert set(NAME.findall(asked)) - metric_names() == set()
    assert set(re.findall(r"travelrec:[a-z_]+:[a-z0-9_]+", asked)) - RECORDED == set()


def test_every_metric_is_shown_or_watched() -> None:
    """A metric that no panel and no alert asks for is one that nobody will look at."""
    asked = " ".join(path.read_text() for path in (*RULES, *DASHBOARDS))
    names = {metric._name for metric in vars(metrics).values() if isinstance(metric, MetricWrapperBase)}
    assert {name for name in names if name not in asked} == NOT_SHOWN


NOT_SHOWN = {"travelrec_http_request_seconds"}  # of single routes, for who looks closer


# --- other configurations ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", sorted(FOLDER.rglob("*.yml")), ids=lambda path: str(path.relative_to(FOLDER))
)
def test_every_configuration_is_yaml(path: Path) -> None:
    """It can be read."""
    assert loaded(path)


def test_the_collector_uses_what_it_defines() -> None:
    """Every part of a pipeline is configured, every configured part is used, and failed traces are always kept."""
    config = loaded(FOLDER / "otel-collector.yml")
    used = {kind: set() for kind in ("receivers", "processors", "exporters")}
    for pipeline in config["service"]["pipelines"].values():
        for kind, names in pipeline.items():
            used[kind] |= set(names)
    assert used == {kind: set(config[kind]) for kind in used}
    assert set(config["service"]["extensions"]) == set(config["extensions"])
    policies = {policy["name"]: policy for policy in config["processors"]["tail_sampling"]["policies"]}
    assert policies["errors"]["status_code"]["status_codes"] == ["ERROR"]


def test_grafana_is_given_the_data_source_that_dashboards_ask() -> None:
    """The default source is a Prometheus, and exemplars lead to a source that is there."""
    folder = FOLDER / "grafana" / "provisioning" / "datasources"
    sources = {
        source["uid"]: source for path in folder.glob("*.yml") for source in loaded(path)["datasources"]
    }
    assert sources["prometheus"]["type"] == "prometheus"
    assert sources["prometheus"]["isDefault"]
    leads_to = {
        each["datasourceUid"] for each in sources["prometheus"]["jsonData"]["exemplarTraceIdDestinations"]
    }
    assert leads_to <= sources.keys()

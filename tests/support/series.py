"""A real Prometheus on a deployment: how it is configured, what it has recorded, and that played to promtool."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from support.servers import Prometheus

FOLDER = Path(__file__).parents[2] / "observability" / "prometheus"


def configuration(targets: Mapping[str, Sequence[str]]) -> str:
    """The committed configuration with these HOST:PORTs by job, scraping and judging every second."""
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(FOLDER / path) for path in config["rule_files"]]
    for job in config["scrape_configs"]:
        del job["dns_sd_configs"]
        job["static_configs"] = [{"targets": list(targets[job["job_name"]])}]
    return yaml.safe_dump(config)


async def query(http: aiohttp.ClientSession, prometheus: Prometheus, expr: str) -> list[float]:
    """The values that an expression has now."""
    async with http.post(f"{prometheus.url}/api/v1/query", data={"query": expr}) as response:
        body = await response.json()
    assert body["status"] == "success", (expr, body)
    return [float(sample["value"][1]) for sample in body["data"]["result"]]


@dataclass(frozen=True)
class Recording:
    """Series, each with a value or none for every second."""

    series: dict[str, list[float | None]]
    seconds: int

    @classmethod
    async def of(
        cls, http: aiohttp.ClientSession, prometheus: Prometheus, began: float, seconds: int
    ) -> "Recording":
        """Every series of ours from `began` on."""
        asked = {
            "query": '{__name__=~"travelrec_.+"}',
            "start": str(began),
            "end": str(began + seconds),
            "step": "1",
        }
        async with http.post(f"{prometheus.url}/api/v1/query_range", data=asked) as response:
            body = await response.json()
        assert body["status"] == "success", body
        series: dict[str, list[float | None]] = {}
        for found in body["data"]["result"]:
            values: list[float | None] = [None] * (seconds + 1)
            for at, value in found["values"]:
                values[round(at - began)] = float(value)
            series[_written(found["metric"])] = values
        return cls(series, seconds)

    def firing(self, folder: Path, at: int, stretched: int, expected: set[str], *, but: str = "") -> None:
        """promtool, with every second stretched to so many, says that at second `at` exactly these alerts fire.

        `but` is a regular expression of alerts that are not looked at.
        """
        severities = {
            rule["alert"]: rule["labels"]["severity"]
            for group in yaml.safe_load((FOLDER / "rules" / "alerts.yml").read_text())["groups"]
            for rule in group["rules"]
        }
        samples = [
            {
                "labels": _written(
                    {
                        "__name__": "ALERTS",
                        "alertname": name,
                        "alertstate": "firing",
                        "severity": severities[name],
                    }
                ),
                "value": 1,
            }
            for name in sorted(expected)
        ]
        fired = f'max by (__name__, alertname, alertstate, severity) (ALERTS{{alertstate="firing",alertname!~"{but}"}})'
        test: dict[str, Any] = {
            "rule_files": [str(path) for path in sorted((FOLDER / "rules").glob("*.yml"))],
            "evaluation_interval": f"{stretched}s",
            "tests": [
                {
                    "interval": f"{stretched}s",
                    "input_series": [
                        {"series": name, "values": " ".join("_" if v is None else repr(v) for v in values)}
                        for name, values in self.series.items()
                    ],
                    "promql_expr_test": [
                        {"expr": fired, "eval_time": f"{at * stretched}s", "exp_samples": samples}
                    ],
                }
            ],
        }
        path = folder / f"recorded-{at}.yml"
        path.write_text(json.dumps(test))  # which is YAML too
        done = subprocess.run(
            ["promtool", "test", "rules", path], capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr


def _written(metric: Mapping[str, str]) -> str:
    labels = ",".join(
        f"{name}={json.dumps(value)}" for name, value in sorted(metric.items()) if name != "__name__"
    )
    return f"{metric['__name__']}{{{labels}}}"

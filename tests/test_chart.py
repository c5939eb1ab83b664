"""charts/travelrec: what its files say, and, where Helm is installed, what it renders for several sets of values."""

import json
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from yaml import CSafeLoader

from support.chart_tools import folder, tool
from travelrec.adapters.rabbitmq import queue_of
from travelrec.errors import BadSetting
from travelrec.settings import Settings, read_settings
from travelrec.trips.entities import SOURCES
from travelrec.wire import INCOMING_GROUP, INCOMING_TOPIC, JOB_TOPICS, RESPONSES_GROUP, RESPONSES_TOPIC
from travelrec_worker.app import ROLES
from travelrec_worker.join import group_of

ROOT = Path(__file__).parents[1]
CHART = ROOT / "charts" / "travelrec"
KUBERNETES = "1.34.0"
MINE = (
    "--set",
    "settings.BROKER_URL=kafka://k1:9092\\,k2:9092,settings.STORE_URL=mongodb://m/trips,existingSecret=keys",
)
KIND = ("--values", str(ROOT / "k8s" / "kind" / "values.yaml"))
KIND_RABBITMQ = (*KIND, "--set", "dev.broker=rabbitmq")
EVERYTHING = (
    *MINE,
    *("--set", "api.ingress.enabled=true,api.ingress.host=t.example,api.ingress.tlsSecret=tls"),
    *("--set", "monitoring.serviceMonitor.enabled=true,monitoring.podMonitor.enabled=true"),
    *("--set", "monitoring.rules.enabled=true,monitoring.dashboards.enabled=true"),
    *("--set", "api.autoscaling.inFlight.metric=in_flight,workers.jobs.scaling.minReplicas=0"),
    *("--set", "workers.chat.enabled=true,workers.relay.enabled=true,workers.join.enabled=true"),
    *("--set", "api.httpRoute.enabled=true,api.httpRoute.parentRefs[0].name=gateway"),
    *("--set", "tasks.enabled=true,settings.TASKS_PROVIDER_URL=https://tasks.example"),
)
PLAIN = (*MINE, "--set", "autoscaling.keda=false,networkPolicy.enabled=false,topics.enabled=false")
RABBITMQ = (*EVERYTHING, "--set", "settings.BROKER_URL=,secrets.RABBITMQ_URL=amqp://u:p@rabbit")
SETS = {
    "mine": MINE,
    "kind": KIND,
    "kind-rabbitmq": KIND_RABBITMQ,
    "everything": EVERYTHING,
    "plain": PLAIN,
    "rabbitmq": RABBITMQ,
}

Manifest = dict[str, Any]
Json = Any


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([tool("helm"), *arguments], capture_output=True, text=True, check=False)


def rendered(*values: str) -> list[Manifest]:
    done = helm(
        "template", "travelrec", str(CHART), "--kube-version", KUBERNETES, "--namespace", "trips", *values
    )
    assert done.returncode == 0, done.stderr
    return [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]


@cache
def custom() -> dict[tuple[str, str], Json]:
    """The schemas of the kinds that Kubernetes learns from others, by version and kind; no field but theirs may be."""
    schemas = {}
    for file in (folder() / "crds").glob("*.yaml"):
        spec = yaml.load(file.read_text(), CSafeLoader)["spec"]
        for version in spec["versions"]:
            name = f"{spec['group']}/{version['name']}", spec["names"]["kind"]
            schemas[name] = strict(version["schema"]["openAPIV3Schema"])
    return schemas


def strict(schema: Json) -> Json:
    """The same schema, in which what it does not name is refused and what may be a number or a string is either."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: strict(value) for name, value in schema.items()}
    if made.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
    if "(?i)" in str(made.get("pattern")):  # as Go writes it
        del made["pattern"]
    open_ended = made.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in made
    if isinstance(made.get("properties"), dict) and made.get("type") == "object" and not open_ended:
        if made["properties"].get("metadata") == {"type": "object"}:
            made["properties"]["metadata"] = {}
        made["additionalProperties"] = False
    return made


def one(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    (found,) = [m for m in manifests if (m["kind"], m["metadata"]["name"]) == (kind, name)]
    return found


def pods(manifests: list[Manifest]) -> dict[str, Manifest]:
    """The pod specs by the name of what makes them."""
    made = {}
    for manifest in manifests:
        if manifest["kind"] == "Pod":
            made[manifest["metadata"]["name"]] = manifest["spec"]
        elif "template" in manifest.get("spec", {}):
            made[manifest["metadata"]["name"]] = manifest["spec"]["template"]["spec"]
    return made


# --- what the files say ----------------------------------------------------------------------------------


def test_values_name_what_there_is() -> None:
    """Settings, roles, topic and group of the values are those of the code, and processes start with them."""
    names: set[str] = set()
    for field in Settings.model_fields.values():
        alias = field.validation_alias
        names |= set(map(str, getattr(alias, "choices", [alias])))
    for file in (CHART / "values.yaml", ROOT / "k8s" / "kind" / "values.yaml"):
        values = yaml.safe_load(file.read_text())
        assert set(values["settings"]) <= names
        for worker in values["workers"].values():
            assert set(worker.get("roles", ROLES)) <= set(ROLES)
    workers = yaml.safe_load((CHART / "values.yaml").read_text())["workers"]
    assert {name: worker["consumes"] for name, worker in workers.items()} == {
        "jobs": {topic: topic for topic in JOB_TOPICS},
        "chat": {INCOMING_TOPIC: INCOMING_GROUP},
        "relay": {RESPONSES_TOPIC: RESPONSES_GROUP},
        "join": {stream.topic: group_of(stream) for stream in SOURCES},
    }


def test_the_schema_knows_every_setting() -> None:
    """A misspelt name is refused, and so is one that a pod sets for itself."""
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]["settings"]
    names = {
        str(name)
        for field in Settings.model_fields.values()
        for name in getattr(field.validation_alias, "choices", [field.validation_alias])
    }
    assert set(schema["propertyNames"]["anyOf"][0]["enum"]) == names
    template = "".join(file.read_text() for file in (CHART / "templates").glob("*/deployment.yaml"))
    owned = set(re.findall(r"- \{ name: ([A-Z_]+),", template))
    assert owned
    assert {name for name in owned if schema["properties"].get(name) is not False} == set()


def test_every_value_is_in_the_schema() -> None:
    """The schema describes every default, so that a misspelt value is refused."""

    def missing(values: dict[str, Any], schema: dict[str, Any], path: str) -> list[str]:
        properties = schema.get("properties", {})
        wrong = []
        for name, value in values.items():
            known = properties.get(name, schema.get("additionalProperties"))
            if not known:
                wrong.append(f"{path}.{name}")
            elif isinstance(value, dict) and isinstance(known, dict) and "properties" in known:
                wrong += missing(value, known, f"{path}.{name}")
        return wrong

    schema = json.loads((CHART / "values.schema.json").read_text())
    assert missing(yaml.safe_load((CHART / "values.yaml").read_text()), schema, "") == []


# --- what it renders -------------------------------------------------------------------------------------


@pytest.mark.real("helm")
class TestRendered:
    @pytest.mark.parametrize("values", SETS.values(), ids=SETS)
    def test_it_is_valid(self, values: tuple[str, ...]) -> None:
        """`helm lint` takes it, and every object is one by the schema of its kind, strictly."""
        done = helm("lint", "--strict", str(CHART), "--kube-version", KUBERNETES, *values)
        assert done.returncode == 0, done.stdout
        for manifest in rendered(*values):
            if schema := custom().get((manifest["apiVersion"], manifest["kind"])):
                jsonschema.validate(manifest, schema)
            else:
                kubernetes_validate.validate(manifest, KUBERNETES, strict=True)

    def test_all_that_others_define_is_looked_at(self) -> None:
        """There is a schema of each kind that KEDA, the Prometheus operator and the Gateway API brought."""
        brought = {
            (m["apiVersion"], m["kind"])
            for m in rendered(*EVERYTHING)
            if re.search(r"keda|coreos|gateway", m["apiVersion"])
        }
        assert {kind for _, kind in brought} == {
            "ScaledObject",
            "ServiceMonitor",
            "PodMonitor",
            "PrometheusRule",
            "HTTPRoute",
        }
        assert brought <= set(custom())

    def test_a_field_that_no_kind_has_is_refused(self) -> None:
        """The schemas judge: a misspelt field of a ScaledObject is found."""
        scaled = one(rendered(*MINE), "ScaledObject", "travelrec-worker-jobs")
        scaled["spec"]["pollingIntervall"] = 5
        with pytest.raises(jsonschema.ValidationError, match="pollingIntervall"):
            jsonschema.validate(scaled, custom()[scaled["apiVersion"], "ScaledObject"])

    def test_its_own_suites_pass(self) -> None:
        """`charts/travelrec/tests`, run by helm-unittest."""
        done = subprocess.run(
            [tool("helm-unittest"), str(CHART)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout
        assert re.search(r"Tests: +[1-9]\d* passed, ", done.stdout), done.stdout

    def test_the_request_of_helm_test_is_in_it(self) -> None:
        """`helm test` sends one request through the Service."""
        test = one(rendered(*KIND), "Pod", "travelrec-test")
        assert test["metadata"]["annotations"]["helm.sh/hook"] == "test"
        assert test["spec"]["containers"][0]["args"] == [
            "ask",
            "Canada",
            "winter",
            "--url",
            "http://travelrec-api:3000",
        ]

    @pytest.mark.parametrize("values", SETS.values(), ids=SETS)
    def test_every_pod_is_restricted(self, values: tuple[str, ...]) -> None:
        """As the pod security level `restricted` asks, and more: no token, no writable root, limits of memory."""
        for name, pod in pods(rendered(*values)).items():
            assert pod["securityContext"]["runAsNonRoot"] is True, name
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
            assert pod["automountServiceAccountToken"] is False, name
            for container in pod["containers"]:
                assert container["securityContext"] == {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                }, name
                assert container["resources"]["limits"]["memory"], name

    @pytest.mark.parametrize(
        ("concurrency", "job_s", "drain_s", "threshold"),
        [(200, 3, 60, "4000"), (20, 1, 5, "100"), (1, 60, 10, "1")],
    )
    def test_the_threshold_follows_from_what_a_pod_can_do(
        self, concurrency: int, job_s: int, drain_s: int, threshold: str
    ) -> None:
        """Waiting messages for each pod: what it finishes within the time to drain, at least one."""
        scaling = (
            f"workers.jobs.scaling.typicalJobSeconds={job_s},workers.jobs.scaling.drainSeconds={drain_s}"
        )
        manifests = rendered(*MINE, "--set", f"workers.jobs.concurrency={concurrency},{scaling}")
        triggers = one(manifests, "ScaledObject", "travelrec-worker-jobs")["spec"]["triggers"]
        assert [trigger["metadata"]["topic"] for trigger in triggers] == list(JOB_TOPICS)
        for trigger in triggers:
            assert trigger["metadata"]["lagThreshold"] == threshold
            assert trigger["metadata"]["bootstrapServers"] == "k1:9092,k2:9092"

    def test_every_role_can_have_workers(self) -> None:
        """Each kind of worker that is enabled has its pods, its scaler and its policy; the others have nothing."""
        roles = ("chat", "relay", "join")
        enabled = ",".join(f"workers.{role}.enabled=true" for role in roles)
        for values, expected in ((MINE, {"jobs"}), ((*MINE, "--set", enabled), {"jobs", *roles})):
            for kind in ("Deployment", "ScaledObject", "PodDisruptionBudget", "NetworkPolicy"):
                names = {m["metadata"]["name"] for m in rendered(*values) if m["kind"] == kind}
                assert {name for name in names if "-worker-" in name} == {
                    f"travelrec-worker-{role}" for role in expected
                }, kind

    @pytest.mark.parametrize(
        ("values", "variable"),
        [
            ("settings.BROKER_URL=amqp://rabbit", "BROKER_URL"),
            ("settings.BROKER_URL=,settings.RABBITMQ_URL=amqp://rabbit", "RABBITMQ_URL"),
            ("settings.BROKER_URL=,secrets.RABBITMQ_URL=amqp://u:p@rabbit", "RABBITMQ_URL"),
            ("settings.BROKER_URL=,autoscaling.rabbitmqFromEnv=BROKER_URL", "BROKER_URL"),
            ("secrets.BROKER_URL=amqp://u:p@rabbit", "BROKER_URL"),  # which goes before that of the settings
            ("dev.enabled=true,settings.BROKER_URL=,settings.RABBITMQ_URL=amqp://rabbit", "RABBITMQ_URL"),
            ("dev.enabled=true,dev.broker=rabbitmq,settings.BROKER_URL=", "BROKER_URL"),
        ],
    )
    def test_on_rabbitmq_the_queues_scale(self, values: str, variable: str) -> None:
        """Each queue of a role is a trigger that takes its address from the workers' own settings."""
        manifests = rendered(*MINE, "--set", f"{values},workers.join.enabled=true")
        configured = one(manifests, "ConfigMap", "travelrec")["data"]
        assert variable == "BROKER_URL" or "BROKER_URL" not in configured
        queues = []
        for role, threshold in (("jobs", "4000"), ("join", "12000")):
            for trigger in one(manifests, "ScaledObject", f"travelrec-worker-{role}")["spec"]["triggers"]:
                assert trigger["type"] == "rabbitmq"
                assert trigger["metadata"]["hostFromEnv"] == variable
                assert trigger["metadata"]["value"] == threshold
                queues.append(trigger["metadata"]["queueName"])
        streams = sorted(SOURCES, key=lambda stream: stream.topic)
        assert queues == [
            *(queue_of(topic, topic) for topic in JOB_TOPICS),
            *(queue_of(stream.topic, group_of(stream)) for stream in streams),
        ]

    @pytest.mark.parametrize("keda", ["true", "false"])
    def test_on_rabbitmq_chat_is_one_pod(self, keda: str) -> None:
        """Two that share a queue would mix up what a user says, also while one takes the other's place."""
        roles = "workers.chat.enabled=true,workers.relay.enabled=true,settings.REDIS_URL=redis://r"
        for broker, alone in (("amqp://rabbit", True), ("kafka://k:9092", False)):
            more = f"{roles},autoscaling.keda={keda},settings.BROKER_URL={broker}"
            manifests = rendered(*MINE, "--set", more)
            for role in ("chat", "relay"):
                spec = one(manifests, "Deployment", f"travelrec-worker-{role}")["spec"]
                assert (spec.get("replicas"), spec["strategy"].get("type")) == (
                    (1, "Recreate") if alone else (None, None)
                )
            scaled = {
                m["metadata"]["name"]
                for m in manifests
                if m["kind"] in ("ScaledObject", "HorizontalPodAutoscaler")
            }
            assert ({"travelrec-worker-chat", "travelrec-worker-relay"} <= scaled) is not alone

    def test_the_api_stays_in_its_service_without_the_store(self) -> None:
        """Its pods are there to say 503; a release that never reached its store takes no other's place."""
        (api,) = pods([one(rendered(*MINE), "Deployment", "travelrec-api")])["travelrec-api"]["containers"]
        assert api["readinessProbe"]["httpGet"]["path"] == "/healthz"
        assert api["startupProbe"]["httpGet"]["path"] == "/readyz"
        assert api["startupProbe"]["failureThreshold"] * api["startupProbe"]["periodSeconds"] >= 3600

    @pytest.mark.parametrize("values", [MINE, KIND], ids=["mine", "kind"])
    def test_the_hook_has_its_policy_before_it_runs(self, values: tuple[str, ...]) -> None:
        """With those of the release before it might not reach a broker that has moved; and it has all settings."""
        manifests = rendered(*values)
        hooks = [one(manifests, kind, "travelrec-topics") for kind in ("NetworkPolicy", "Job")]
        policy, job = (hook["metadata"]["annotations"] for hook in hooks)
        assert policy["helm.sh/hook"] == job["helm.sh/hook"]
        assert int(policy["helm.sh/hook-weight"]) < int(job.get("helm.sh/hook-weight", "0"))
        given = {e["name"]: e["value"] for e in pods(manifests)["travelrec-topics"]["containers"][0]["env"]}
        assert given == one(manifests, "ConfigMap", "travelrec")["data"]

    @pytest.mark.parametrize("tag", [f"0.1.0@sha256:{'0' * 64}", "x" * 100])
    def test_any_tag_is_a_version(self, tag: str) -> None:
        """A digest is part of the image's name, and no label."""
        for manifest in rendered(*MINE, "--set", f"image.tag={tag}"):
            version = manifest["metadata"].get("labels", {}).get("app.kubernetes.io/version", "")
            assert re.fullmatch(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?", version)

    def test_no_sleep_is_no_hook(self) -> None:
        """Kubernetes before 1.33 refuses a sleep of 0 seconds."""
        manifests = rendered(*MINE, "--set", "api.preStopSeconds=0")
        assert "lifecycle" not in pods(manifests)["travelrec-api"]["containers"][0]

    @pytest.mark.parametrize(
        ("values", "brokers"),
        [
            (KIND, {"kafka"}),
            (KIND_RABBITMQ, {"rabbitmq"}),
            ((*KIND_RABBITMQ, "--set", "settings.BROKER_URL=kafka://mine:9092"), set()),
            ((*KIND, "--set", "secrets.RABBITMQ_URL=amqp://u:p@mine"), set()),
            (RABBITMQ, set()),
        ],
    )
    def test_there_is_one_development_broker_or_yours(
        self, values: tuple[str, ...], brokers: set[str]
    ) -> None:
        """The development broker that `dev.broker` names is all there is, and none where another is named."""
        manifests = rendered(*values)
        sets = {m["metadata"]["name"] for m in manifests if m["kind"] == "StatefulSet"}
        assert {f"travelrec-{broker}" for broker in ("kafka", "rabbitmq")} & sets == {
            f"travelrec-{broker}" for broker in brokers
        }
        address = one(manifests, "ConfigMap", "travelrec")["data"].get("BROKER_URL", "")
        assert (".trips:" in address) == bool(brokers), address

    def test_scaling_to_zero_asks_the_store_too(self) -> None:
        """With a minimum of 0 a pending job that is in no topic keeps a worker, or brings one back."""
        scaled = one(
            rendered(*MINE, "--set", "workers.jobs.scaling.minReplicas=0"),
            "ScaledObject",
            "travelrec-worker-jobs",
        )
        kafka, _, mongo = scaled["spec"]["triggers"]
        assert "tls" not in kafka["metadata"]
        assert kafka["metadata"]["activationLagThreshold"] == "0"
        assert kafka["metadata"]["offsetResetPolicy"] == "earliest"
        assert mongo["type"] == "mongodb"
        assert mongo["metadata"]["dbName"] == "trips"
        assert json.loads(mongo["metadata"]["query"]) == {"status": "pending"}

    @pytest.mark.parametrize(
        ("values", "database"),
        [
            ("secrets.STORE_URL=mongodb://u:p@m/other?w=1", "other"),
            ("settings.STORE_URL=mongodb://m", "travelrec"),
            ("settings.STORE_URL=,workers.jobs.scaling.database=mine", "mine"),
            ("settings.STORE_URL=,dev.enabled=true", "travelrec"),
        ],
    )
    def test_it_asks_in_the_database_of_the_store(self, values: str, database: str) -> None:
        """Wherever the address is; in another one nothing would ever be pending."""
        manifests = rendered(*MINE, "--set", f"workers.jobs.scaling.minReplicas=0,{values}")
        scaled = one(manifests, "ScaledObject", "travelrec-worker-jobs")
        assert scaled["spec"]["triggers"][-1]["metadata"]["dbName"] == database

    def test_keda_uses_tls_where_the_processes_do(self) -> None:
        """`kafka+ssl://` says it once for both."""
        manifests = rendered(*MINE, "--set", "settings.BROKER_URL=kafka+ssl://k:9093")
        trigger = one(manifests, "ScaledObject", "travelrec-worker-jobs")["spec"]["triggers"][0]
        assert (trigger["metadata"]["tls"], trigger["metadata"]["bootstrapServers"]) == ("enable", "k:9093")

    def test_every_worker_with_metrics_is_scraped(self) -> None:
        """Those of tasks too, without whose metrics an alert could not fire."""
        manifests = rendered(*EVERYTHING)
        (monitor,) = [m for m in manifests if m["kind"] == "PodMonitor"]
        (component,) = monitor["spec"]["selector"]["matchExpressions"]
        serving = {
            m["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/component"]
            for m in manifests
            if m["kind"] == "Deployment"
            for port in m["spec"]["template"]["spec"]["containers"][0]["ports"]
            if port["name"] == "metrics"
        }
        assert set(component["values"]) == serving
        assert "worker-tasks" in serving

    def test_the_time_limit_of_chat_is_that_of_its_answers(self) -> None:
        """As that of jobs is the one of theirs."""
        values = "workers.chat.enabled=true,workers.chat.timeLimitSeconds=45"
        pod = pods(rendered(*MINE, "--set", values))["travelrec-worker-chat"]
        env = {e["name"]: e["value"] for e in pod["containers"][0]["env"]}
        assert env["CHAT_TIMEOUT"] == "45"

    def test_the_grace_follows_from_the_time_limit(self) -> None:
        """A pod that is told to stop may finish a job; Kubernetes waits longer than the worker itself."""
        pod = pods(rendered(*MINE, "--set", "workers.jobs.timeLimitSeconds=90"))["travelrec-worker-jobs"]
        env = {e["name"]: e["value"] for e in pod["containers"][0]["env"]}
        assert env["MODEL_TIMEOUT"] == "90"
        assert 90 < float(env["SHUTDOWN_GRACE"]) < pod["terminationGracePeriodSeconds"]

    @pytest.mark.parametrize("values", [MINE, KIND, KIND_RABBITMQ], ids=["mine", "kind", "kind-rabbitmq"])
    def test_processes_start_with_the_settings(
        self, values: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """What the ConfigMap and the pods set are settings that a process takes."""
        manifests = rendered(*values)
        given = dict(one(manifests, "ConfigMap", "travelrec")["data"])
        for pod in pods(manifests).values():
            image = pod["containers"][0]["image"]
            if image.startswith("travelrec/"):
                given |= {e["name"]: e["value"] for e in pod["containers"][0].get("env", [])}
        monkeypatch.chdir(tmp_path)
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        try:
            settings = read_settings()
        except BadSetting as bad:
            pytest.fail(str(bad))
        assert settings.broker_url == given["BROKER_URL"]

    def test_a_change_of_settings_restarts_the_pods(self) -> None:
        """The pods carry a checksum of the settings and of the secrets."""
        ways = [(), ("--set", "settings.LOG_LEVEL=debug"), ("--set", "secrets.OPENAI_API_KEY=sk-2")]
        for name in ("travelrec-api", "travelrec-worker-jobs"):
            seen = [
                one(rendered(*MINE, *w), "Deployment", name)["spec"]["template"]["metadata"]["annotations"]
                for w in ways
            ]
            assert len({json.dumps(annotations, sort_keys=True) for annotations in seen}) == len(ways)

    def test_secrets_are_in_no_configmap(self) -> None:
        """A secret value stands in the Secret alone."""
        manifests = rendered(*MINE, "--set", "secrets.OPENAI_API_KEY=sk-hidden")
        assert [m["kind"] for m in manifests if "sk-hidden" in json.dumps(m)] == ["Secret"]

    def test_rules_and_dashboards_are_those_of_observability(self) -> None:
        """There is one source: what the chart installs is what `observability/` has."""
        manifests = rendered(*EVERYTHING)
        rules = [m["spec"] for m in manifests if m["kind"] == "PrometheusRule"]
        files = sorted((ROOT / "observability" / "prometheus" / "rules").glob("*.yml"))
        assert files
        assert rules == [yaml.safe_load(file.read_text()) for file in files]
        dashboards = one(manifests, "ConfigMap", "travelrec-dashboards")["data"]
        source = (ROOT / "observability" / "grafana" / "dashboards").glob("*.json")
        assert {name: json.loads(text) for name, text in dashboards.items()} == {
            file.name: json.loads(file.read_text()) for file in source
        }

    def test_every_pod_of_ours_has_a_policy(self) -> None:
        """With network policies on, one selects every pod; nothing but DNS is open to all of them."""
        manifests = rendered(*KIND)
        policies = [m["spec"] for m in manifests if m["kind"] == "NetworkPolicy"]
        (base,) = [
            p for p in policies if "app.kubernetes.io/component" not in p["podSelector"]["matchLabels"]
        ]
        assert base["policyTypes"] == ["Ingress", "Egress"]
        assert "ingress" not in base
        assert {port["port"] for rule in base["egress"] for port in rule["ports"]} == {53}
        selected = {p["podSelector"]["matchLabels"].get("app.kubernetes.io/component") for p in policies}
        assert {"api", "worker-jobs", "topics", "test", "kafka", "mongo", "model"} <= selected

    @pytest.mark.parametrize(
        ("values", "words"),
        [
            ((), "settings.BROKER_URL: name your Kafka"),
            (("--set", "settings.BROKER_URL=kafka://k:9092"), "settings.STORE_URL: name your MongoDB"),
            ((*MINE, "--set", "existingSecret="), "existingSecret: name a Secret with an OPENAI_API_KEY"),
            ((*MINE, "--set", "settings.BROKER_URL="), "autoscaling.bootstrapServers: KEDA must know"),
            ((*MINE, "--set", "autoscaling.rabbitmqFromEnv=HOST"), "at '/autoscaling/rabbitmqFromEnv'"),
            (
                (*MINE, "--set", "autoscaling.rabbitmqFromEnv=BROKER_URL"),
                "autoscaling.rabbitmqFromEnv: is for a broker that only existingSecret names",
            ),
            ((*MINE, "--set", "settings.RABBITMQ_URL=kafka://k"), "at '/settings/RABBITMQ_URL'"),
            ((*MINE, "--set", "api.replica=3"), "at '/api': additional properties 'replica' not allowed"),
            ((*MINE, "--set", "settings.STORE_URL=postgres://p"), "at '/settings/STORE_URL'"),
            ((*MINE, "--set", "settings.OPENAI_API_KEY=sk-1"), "at '/settings/OPENAI_API_KEY'"),
            (
                (*MINE, "--set", "settings.OPENAI_FALLBACK_API_KEY=sk"),
                "at '/settings/OPENAI_FALLBACK_API_KEY'",
            ),
            ((*MINE, "--set", "settings.CHAT_TOKEN_SECRET=s"), "at '/settings/CHAT_TOKEN_SECRET'"),
            (
                (*MINE, "--set", "settings.KAFKA_BOOTSTRAP_SERVERS=k:9092"),
                "settings.KAFKA_BOOTSTRAP_SERVERS: here it is called BROKER_URL",
            ),
            (
                (*MINE, "--set", "secrets.MONGODB_URL=mongodb://m"),
                "settings.MONGODB_URL: here it is called STORE_URL",
            ),
            ((*MINE, "--set", "tasks.timeLimitSeconds=301"), "at '/tasks/timeLimitSeconds'"),
            ((*MINE, "--set", "workers.jobs.timeLimitSeconds=3596"), "at '/workers/jobs/timeLimitSeconds'"),
            (
                (*MINE, "--set", "workers.join.enabled=true,workers.join.scaling.minReplicas=0"),
                "workers.join.scaling.minReplicas: 1 at the least",
            ),
            ((*MINE, "--set", "settings.MODLE_TIMEOUT=3"), "'MODLE_TIMEOUT'"),
            ((*MINE, "--set", "settings.MODEL_TIMEOUT=3"), "at '/settings/MODEL_TIMEOUT'"),
            ((*MINE, "--set", "settings.PORT=8000"), "at '/settings/PORT'"),
            (
                (*MINE, "--set", "existingSecret=,secrets.OPENAI_API_KEY=k,workers.chat.enabled=true"),
                "settings.REDIS_URL: name the Redis of the chats",
            ),
            (
                (*MINE, "--set", "settings.STORE_URL=,workers.jobs.scaling.minReplicas=0"),
                "workers.jobs.scaling.database: name the database",
            ),
            (
                (*MINE, "--set", "workers.jobs.concurrency=0"),
                "at '/workers/jobs/concurrency': minimum: got 0, want 1",
            ),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_bad_values_are_refused(self, values: tuple[str, ...], words: str) -> None:
        """One readable line says which value, and what to do."""
        done = helm("template", "travelrec", str(CHART), "--kube-version", KUBERNETES, *values)
        assert done.returncode != 0
        assert words in done.stderr

"""The Grafana dashboards, from what they ask Prometheus: `python observability/dashboards.py` writes their JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from grafana_foundation_sdk.builders import dashboard, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.builders.common import ReduceDataOptions, VizLegendOptions, VizTooltipOptions
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    DataSourceRef,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    VariableRefresh,
)
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef as VariableSource,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

FOLDER = Path(__file__).parent / "grafana" / "dashboards"
_SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
_COLUMNS = 24


@dataclass(frozen=True)
class Panel:
    """What one panel shows: queries by legend. A stat shows the newest value alone."""

    title: str
    queries: dict[str, str]
    unit: str = "short"
    about: str = ""
    form: str = "timeseries"
    height: int = 8


@dataclass(frozen=True)
class Dashboard:
    """Rows of panels, from left to right as work flows, that share the width."""

    uid: str
    title: str
    about: str
    rows: tuple[tuple[str, tuple[Panel, ...]], ...]
    by_worker: bool = False


def _rate(metric: str, by: str = "", labels: str = "") -> str:
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped} (rate({metric}{{{labels}}}[$__rate_interval]))".replace("{}", "")


def _quantiles(metric: str, labels: str = "") -> dict[str, str]:
    rate = _rate(f"{metric}_bucket", "le", labels)
    return {f"p{round(q * 100)}": f"histogram_quantile({q}, {rate})" for q in (0.5, 0.95, 0.99)}


def _now(title: str, query: str, unit: str = "short", about: str = "") -> Panel:
    return Panel(title, {title.lower(): query}, unit, about, "stat", 4)


_WORKER = 'instance=~"$instance"'
_COST = "travelrec_model_cost_dollars_total"
_COMPLETED = _rate("travelrec_jobs_finished_total", labels='outcome="completed"')

OVERVIEW = Dashboard(
    "travelrec-overview",
    "Travelrec: overview",
    "The flow from left to right: accept, wait, run, ask the model, end, tell.",
    (
        (
            "Now",
            (
                _now("Accepted", _rate("travelrec_jobs_accepted_total"), "reqps"),
                _now(
                    "Waiting",
                    "max(travelrec_jobs_waiting)",
                    about="Accepted and not ended, as the store counts.",
                ),
                _now("Oldest", "max(travelrec_oldest_waiting_seconds)", "s"),
                _now("In flight", "sum(travelrec_jobs_in_flight)"),
                _now("Model calls", _rate("travelrec_model_calls_total"), "reqps"),
                _now("Finished", _rate("travelrec_jobs_finished_total"), "reqps"),
                _now("Clients waiting", "sum(travelrec_waiters)"),
                _now(
                    "Neighbours",
                    "min(travelrec_dependency_up)",
                    "bool_on_off",
                    "Every worker reaches all of them.",
                ),
            ),
        ),
        (
            "How long",
            (
                Panel("To accept", _quantiles("travelrec_accept_seconds"), "s"),
                Panel("In the queue", _quantiles("travelrec_job_wait_seconds"), "s"),
                Panel("At the model", _quantiles("travelrec_model_call_seconds"), "s"),
                Panel(
                    "From request to result", _quantiles("travelrec_job_seconds", 'outcome="completed"'), "s"
                ),
            ),
        ),
        (
            "How many",
            (
                Panel(
                    "In and out",
                    {
                        "accepted": _rate("travelrec_jobs_accepted_total"),
                        "{{outcome}}": _rate("travelrec_jobs_finished_total", "outcome"),
                    },
                    "reqps",
                ),
                Panel(
                    "Waiting and in flight",
                    {"waiting": "max(travelrec_jobs_waiting)", "in flight": "sum(travelrec_jobs_in_flight)"},
                ),
                Panel(
                    "Tried again, by reason",
                    {"{{reason}}": _rate("travelrec_jobs_retried_total", "reason")},
                    "ops",
                ),
                Panel(
                    "Work that was saved",
                    {
                        "coalesced": _rate("travelrec_jobs_followed_total"),
                        "cached at {{at}}": _rate("travelrec_cache_hits_total", "at"),
                    },
                    "ops",
                ),
            ),
        ),
        (
            "What callers see",
            (
                Panel(
                    "Answers by route and status",
                    {
                        "{{method}} {{route}} {{status}}": _rate(
                            "travelrec_http_requests_total", "method, route, status"
                        )
                    },
                    "reqps",
                ),
                Panel(
                    "Who waits",
                    {
                        "long polls": "sum(travelrec_long_polls)",
                        "event streams": "sum(travelrec_event_streams)",
                    },
                ),
                Panel(
                    "Signals",
                    {
                        "sent": _rate("travelrec_signals_sent_total"),
                        "heard": _rate("travelrec_signals_heard_total"),
                        "late or lost": _rate("travelrec_signals_late_total"),
                    },
                    "ops",
                    "Each API process and worker hears every signal.",
                ),
                Panel(
                    "Error budgets",
                    {
                        "accept: refused of 1 h, allowed 0.1 %": "travelrec:accept_errors:ratio_rate1h",
                        "completion: failed of 1 h, allowed 1 %": "travelrec:completion_errors:ratio_rate1h",
                    },
                    "percentunit",
                ),
            ),
        ),
    ),
)

WORKER = Dashboard(
    "travelrec-worker",
    "Travelrec: workers",
    "Each worker: what it does, what it costs, whether it gets on.",
    (
        (
            "Work",
            (
                Panel("In flight", {"{{instance}}": f"travelrec_jobs_in_flight{{{_WORKER}}}"}),
                Panel(
                    "Claimed",
                    {"{{instance}}": _rate("travelrec_jobs_claimed_total", "instance", _WORKER)},
                    "ops",
                ),
                Panel(
                    "Ended",
                    {
                        "{{instance}} {{outcome}}": _rate(
                            "travelrec_jobs_finished_total", "instance, outcome", _WORKER
                        )
                    },
                    "ops",
                ),
            ),
        ),
        (
            "Progress",
            (
                Panel(
                    "Oldest work",
                    {"{{instance}}": f"travelrec_oldest_work_seconds{{{_WORKER}}}"},
                    "s",
                    "The oldest call that has not ended; waiting for work is none.",
                ),
                Panel(
                    "Event loop",
                    {"{{instance}}": f"travelrec_loop_lag_seconds{{{_WORKER}}}"},
                    "s",
                    "How late it is.",
                ),
                Panel(
                    "Guard",
                    {"{{instance}} {{topic}}": f"travelrec_guard{{{_WORKER}}}"},
                    about="0 closed, 1 probing, 2 open: nearly all jobs failed alike.",
                ),
                Panel(
                    "Neighbours reached",
                    {"{{instance}} {{dependency}}": f"travelrec_dependency_up{{{_WORKER}}}"},
                    "bool_on_off",
                ),
            ),
        ),
        (
            "Trouble",
            (
                Panel(
                    "Messages dropped, leases lost",
                    {
                        "{{instance}} dropped": _rate(
                            "travelrec_messages_dropped_total", "instance", _WORKER
                        ),
                        "{{instance}} lost": _rate("travelrec_leases_lost_total", "instance", _WORKER),
                    },
                    "ops",
                ),
                Panel(
                    "Tried again",
                    {
                        "{{instance}} {{reason}}": _rate(
                            "travelrec_jobs_retried_total", "instance, reason", _WORKER
                        )
                    },
                    "ops",
                ),
                Panel(
                    "Sweeper",
                    {
                        "{{instance}} published": _rate(
                            "travelrec_sweeper_published_total", "instance", _WORKER
                        ),
                        "{{instance}} purged": _rate("travelrec_jobs_purged_total", "instance", _WORKER),
                    },
                    "ops",
                ),
            ),
        ),
        (
            "Machine",
            (
                Panel(
                    "CPU",
                    {"{{instance}}": f"rate(process_cpu_seconds_total{{{_WORKER}}}[$__rate_interval])"},
                    "percentunit",
                ),
                Panel("Memory", {"{{instance}}": f"process_resident_memory_bytes{{{_WORKER}}}"}, "bytes"),
                Panel("Open files", {"{{instance}}": f"process_open_fds{{{_WORKER}}}"}),
            ),
        ),
    ),
    by_worker=True,
)

MODEL = Dashboard(
    "travelrec-model",
    "Travelrec: model and cost",
    "What the model does, what it lets us do, and what it costs.",
    (
        (
            "Now",
            (
                _now("Breaker", "max(travelrec_model_breaker)", about="0 closed, 1 probing, 2 open."),
                _now("Calls allowed at once", "sum(travelrec_model_concurrency_allowed)"),
                _now(
                    "Dollars an hour",
                    f"3600 * {_rate(_COST)}",
                    "currencyUSD",
                ),
                _now(
                    "Dollars a thousand jobs",
                    f"1000 * {_rate(_COST)} / {_COMPLETED}",
                    "currencyUSD",
                ),
            ),
        ),
        (
            "Calls",
            (
                Panel("By model", {"{{model}}": _rate("travelrec_model_calls_total", "model")}, "reqps"),
                Panel(
                    "By how they ended",
                    {"{{outcome}}": _rate("travelrec_model_calls_total", "outcome")},
                    "reqps",
                ),
                Panel("Seconds", _quantiles("travelrec_model_call_seconds", 'outcome="ok"'), "s"),
                Panel(
                    "Seconds, spread out",
                    {"{{le}}": _rate("travelrec_model_call_seconds_bucket", "le")},
                    "s",
                    form="heatmap",
                ),
            ),
        ),
        (
            "Limits",
            (
                Panel(
                    "Calls at once",
                    {
                        "in flight": "sum(travelrec_jobs_in_flight)",
                        "allowed, {{provider}}": "sum by (provider) (travelrec_model_concurrency_allowed)",
                    },
                ),
                Panel("Breakers", {"{{provider}}": "max by (provider) (travelrec_model_breaker)"}),
                Panel(
                    "Pauses, by reason",
                    {"{{reason}}": _rate("travelrec_intake_pauses_total", "reason")},
                    "ops",
                ),
            ),
        ),
        (
            "Cost",
            (
                Panel(
                    "Tokens",
                    {"{{model}} {{direction}}": _rate("travelrec_model_tokens_total", "model, direction")},
                    "ops",
                ),
                Panel(
                    "Dollars an hour",
                    {"{{model}}": f"3600 * {_rate(_COST, 'model')}"},
                    "currencyUSD",
                    "Estimated: list prices, or MODEL_PRICES.",
                ),
                Panel(
                    "Jobs without a call of their own",
                    {
                        "share": f"({_rate('travelrec_jobs_followed_total')}"
                        f" + ({_rate('travelrec_cache_hits_total')} or vector(0))) / {_COMPLETED}"
                    },
                    "percentunit",
                ),
            ),
        ),
    ),
)

KAFKA = Dashboard(
    "travelrec-kafka",
    "Travelrec: Kafka",
    "Messages between the processes: lag is work that no worker has taken yet.",
    (
        (
            "Now",
            (
                _now("Lag", "sum(max by (topic, partition) (travelrec_consumer_lag))"),
                _now("Reached by all", 'min(travelrec_dependency_up{dependency="broker"})', "bool_on_off"),
                _now("Left to the sweeper", _rate("travelrec_publish_failed_total"), "ops"),
                _now("Dead letters in an hour", "sum(increase(travelrec_dead_letters_total[1h]))"),
            ),
        ),
        (
            "Jobs",
            (
                Panel(
                    "Lag by partition",
                    {"{{topic}} {{partition}}": "max by (topic, partition) (travelrec_consumer_lag)"},
                ),
                Panel(
                    "Messages",
                    {
                        "taken": _rate("travelrec_jobs_claimed_total"),
                        "dropped": _rate("travelrec_messages_dropped_total"),
                        "published by the sweeper": _rate("travelrec_sweeper_published_total"),
                    },
                    "ops",
                ),
                Panel("Dead letters", {"{{topic}}": _rate("travelrec_dead_letters_total", "topic")}, "ops"),
            ),
        ),
        (
            "Signals",
            (
                Panel(
                    "Signals",
                    {
                        "sent": _rate("travelrec_signals_sent_total"),
                        "heard by {{instance}}": _rate("travelrec_signals_heard_total", "instance"),
                    },
                    "ops",
                ),
                Panel(
                    "Late or lost", {"{{instance}}": _rate("travelrec_signals_late_total", "instance")}, "ops"
                ),
            ),
        ),
    ),
)

TASKS = Dashboard(
    "travelrec-tasks",
    "Travelrec: tasks",
    "Tasks at the third party: submitted at a limited rate, followed by asking it.",
    (
        (
            "Now",
            (
                _now("Not started", 'max(travelrec_tasks{status="Not Started"})'),
                _now("In progress", 'max(travelrec_tasks{status="In Progress"})'),
                _now("Error", 'max(travelrec_tasks{status="Error"})'),
                _now(
                    "Submitted",
                    _rate("travelrec_task_submissions_total", labels='outcome="accepted"'),
                    "reqps",
                ),
                _now(
                    "Polls that failed in an hour",
                    'sum(increase(travelrec_task_polls_total{outcome="failed"}[1h]))',
                ),
            ),
        ),
        (
            "Submission",
            (
                Panel(
                    "In and out",
                    {
                        "created, {{status}}": _rate("travelrec_tasks_created_total", "status"),
                        "{{outcome}}": _rate("travelrec_task_submissions_total", "outcome"),
                    },
                    "reqps",
                    "All calls but the late ones count for TASKS_RATE_LIMIT.",
                ),
                Panel("From creation to submission", _quantiles("travelrec_task_wait_seconds"), "s"),
                Panel("One call", _quantiles("travelrec_task_submission_seconds", 'outcome="accepted"'), "s"),
            ),
        ),
        (
            "Polling",
            (
                Panel("Polls", {"{{outcome}}": _rate("travelrec_task_polls_total", "outcome")}, "reqps"),
                Panel("One poll", _quantiles("travelrec_task_poll_seconds"), "s"),
                Panel("Rows", {"{{outcome}}": _rate("travelrec_task_rows_total", "outcome")}, "ops"),
            ),
        ),
    ),
)

TRIPS = Dashboard(
    "travelrec-trips",
    "Travelrec: trips",
    "Three streams of made-up trips, and the join that makes one record of each trip's three.",
    (
        (
            "Now",
            (
                _now("Made", _rate("travelrec_trips_made_total"), "ops"),
                _now("Joined", _rate("travelrec_trips_closed_total", labels='outcome="joined"'), "ops"),
                _now("Open", "max(travelrec_trips_open)"),
                _now(
                    "Incomplete in an hour",
                    'sum(increase(travelrec_trips_closed_total{outcome!="joined"}[1h]))',
                ),
            ),
        ),
        (
            "Join",
            (
                Panel(
                    "Published, by what became of the trip",
                    {"{{outcome}}": _rate("travelrec_trips_closed_total", "outcome")},
                    "ops",
                ),
                Panel(
                    "From a trip's first record to its joined one",
                    _quantiles("travelrec_trip_join_seconds"),
                    "s",
                ),
                Panel(
                    "Records, as the broker reported them",
                    {"{{topic}}, {{outcome}}": _rate("travelrec_trip_records_total", "topic, outcome")},
                    "ops",
                ),
            ),
        ),
    ),
)

CHAT = Dashboard(
    "travelrec-chat",
    "Travelrec: chat",
    "Conversations: connections, messages taken over, their answers, and how long these take.",
    (
        (
            "Now",
            (
                _now("Connections", "sum(travelrec_chat_connections)"),
                _now(
                    "Messages", _rate("travelrec_chat_messages_total", labels='outcome="accepted"'), "reqps"
                ),
                _now(
                    "Not answered in an hour",
                    'sum(increase(travelrec_chat_replies_total{outcome="failed"}[1h]))',
                ),
                _now(
                    "Handshakes refused in an hour",
                    "sum(increase(travelrec_chat_refused_total[1h]))",
                ),
            ),
        ),
        (
            "Conversation",
            (
                Panel(
                    "In and out",
                    {
                        "{{outcome}}": _rate("travelrec_chat_messages_total", "outcome"),
                        "reply, {{outcome}}": _rate("travelrec_chat_replies_total", "outcome"),
                        "over the limit": _rate("travelrec_chat_limited_total"),
                    },
                    "reqps",
                ),
                Panel("From message to answer", _quantiles("travelrec_chat_seconds"), "s"),
                Panel(
                    "Repeats that were dropped",
                    {"{{role}}": _rate("travelrec_chat_repeats_total", "role")},
                    "ops",
                ),
            ),
        ),
    ),
)

DASHBOARDS = (OVERVIEW, WORKER, MODEL, KAFKA, TASKS, TRIPS, CHAT)


def rendered(board: Dashboard) -> str:
    """The JSON that Grafana is provisioned with."""
    built = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.about)
        .tags(["travelrec"])
        .editable()
        .refresh("10s")
        .time("now-1h", "now")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(dashboard.DashboardLink("Travelrec").type("dashboards").tags(["travelrec"]).as_dropdown(True))
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    )
    if board.by_worker:
        built = built.with_variable(
            dashboard.QueryVariable("instance")
            .label("Worker")
            .query("label_values(travelrec_dependency_up, instance)")
            .datasource(VariableSource(type_val="prometheus", uid="${datasource}"))
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .multi(True)
            .include_all(True)
            .all_value(".*")
        )
    number = 0
    for title, panels in board.rows:
        built = built.with_row(dashboard.Row(title).id(100 + number))
        for panel in panels:
            number += 1
            width = _COLUMNS // len(panels)
            built = built.with_panel(_panel(panel).id(number).height(panel.height).span(width))
    return json.dumps(built.build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def _panel(panel: Panel) -> timeseries.Panel | stat.Panel | heatmap.Panel:
    made: timeseries.Panel | stat.Panel | heatmap.Panel
    match panel.form:
        case "stat":
            made = stat.Panel().reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
        case "heatmap":
            made = heatmap.Panel()
        case _:
            made = (
                timeseries.Panel()
                .min(0)
                .fill_opacity(10)
                .legend(
                    VizLegendOptions()
                    .display_mode(LegendDisplayMode.LIST)
                    .placement(LegendPlacement.BOTTOM)
                    .show_legend(True)
                )
                .tooltip(VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
            )
    made = made.title(panel.title).description(panel.about).unit(panel.unit).datasource(_SOURCE)
    for number, (legend, expr) in enumerate(panel.queries.items()):
        query = prometheus.Dataquery().expr(expr).legend_format(legend).ref_id(chr(ord("A") + number))
        query = query.range().exemplar(panel.form == "timeseries" and "_bucket" in expr)
        if panel.form == "heatmap":
            query = query.format(PromQueryFormat.HEATMAP)
        made = made.with_target(query)
    return made


def main() -> None:
    """Writes them all."""
    for board in DASHBOARDS:
        (FOLDER / f"{board.uid}.json").write_text(rendered(board))


if __name__ == "__main__":
    main()

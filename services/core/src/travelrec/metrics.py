"""Every metric in one list: name, type, labels, meaning. Labels have few values; a uid is never one.

Histograms that are given a trace as `exemplar` show it in the OpenMetrics format, where one process serves.
"""

from __future__ import annotations

import os

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector

disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus_client leaves it untyped

_ANSWER_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_JOB_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600, 14400, 86400)
_MODEL_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 45, 60, 120)

# --- HTTP and accept: the API's processes ---------------------------------------------------------------

HTTP_REQUESTS = Counter(
    "travelrec_http_requests_total",
    "Requests answered, by route template and status.",
    ["method", "route", "status"],
)
HTTP_SECONDS = Histogram(
    "travelrec_http_request_seconds",
    "Time to answer a request; of a long poll or an event stream, also the time it waited.",
    ["method", "route"],
    buckets=_ANSWER_S,
)
ACCEPTED = Counter("travelrec_jobs_accepted_total", "Jobs made durable and answered with a uid.", ["kind"])
ACCEPT_SECONDS = Histogram(
    "travelrec_accept_seconds", "From a valid request to its durable job.", ["kind"], buckets=_ANSWER_S
)
PUBLISH_FAILED = Counter(
    "travelrec_publish_failed_total", "Accepted jobs whose message was left to the sweeper."
)
WAITERS = Gauge(
    "travelrec_waiters", "Long polls and event streams that wait for a job.", multiprocess_mode="livesum"
)
LONG_POLLS = Gauge("travelrec_long_polls", "Long polls that wait for a job.", multiprocess_mode="livesum")
EVENT_STREAMS = Gauge("travelrec_event_streams", "Event streams that are open.", multiprocess_mode="livesum")

# --- a job's way: the workers, and the API where it ends a job ------------------------------------------

CLAIMED = Counter("travelrec_jobs_claimed_total", "Jobs leased by a worker.", ["kind"])
NOT_CLAIMED = Counter(
    "travelrec_messages_dropped_total", "Messages whose job was finished or leased elsewhere."
)
WAIT_SECONDS = Histogram("travelrec_job_wait_seconds", "From acceptance to claim.", ["kind"], buckets=_JOB_S)
IN_FLIGHT = Gauge("travelrec_jobs_in_flight", "Jobs being run by this worker.", multiprocess_mode="livesum")
FINISHED = Counter("travelrec_jobs_finished_total", "Jobs that ended, by outcome.", ["kind", "outcome"])
JOB_SECONDS = Histogram(
    "travelrec_job_seconds",
    "From acceptance to the stored result or failure; from the replay for one that was replayed.",
    ["kind", "outcome"],
    buckets=_JOB_S,
)
RETRIED = Counter("travelrec_jobs_retried_total", "Attempts that will be tried again, by reason.", ["reason"])
LOST_LEASES = Counter("travelrec_leases_lost_total", "Runs whose result no longer counted.")
FOLLOWERS = Counter("travelrec_jobs_followed_total", "Jobs that took the outcome of another's run.")
CACHE_HITS = Counter(
    "travelrec_cache_hits_total", "Jobs that took an earlier answer, by where it was found.", ["at"]
)
DEAD_LETTERS = Counter("travelrec_dead_letters_total", "Copies written to a dead-letter topic.", ["topic"])
SIGNALS_SENT = Counter("travelrec_signals_sent_total", "Signals of ended jobs sent.")
SIGNALS_HEARD = Counter("travelrec_signals_heard_total", "Signals of ended jobs heard.")
SIGNALS_LATE = Counter(
    "travelrec_signals_late_total",
    "Jobs whose end was found by looking again, because its signal was late or lost.",
)
OLDEST_WORK = Gauge(
    "travelrec_oldest_work_seconds",
    "Age of the oldest model call, loop turn or neighbour's call that has not ended. Waiting is no work.",
    multiprocess_mode="livemax",
)
LOOP_LAG = Gauge(
    "travelrec_loop_lag_seconds", "How late the event loop last was.", multiprocess_mode="livemax"
)

# --- the model: the workers -----------------------------------------------------------------------------

MODEL_CALLS = Counter(
    "travelrec_model_calls_total",
    "Model calls, by the model's name in the settings and by how they ended.",
    ["model", "outcome"],
)
MODEL_SECONDS = Histogram("travelrec_model_call_seconds", "One model call.", ["outcome"], buckets=_MODEL_S)
TOKENS = Counter(
    "travelrec_model_tokens_total", "Tokens as the provider counts them.", ["model", "direction"]
)
COST = Counter(
    "travelrec_model_cost_dollars_total",
    "Estimated cost in US dollars: tokens at the list prices of prices.py, or at MODEL_PRICES.",
    ["model"],
)
MODEL_CONCURRENCY = Gauge(
    "travelrec_model_concurrency_allowed",
    "Model calls that may be in flight, as the provider's answers allow; at most WORKER_CONCURRENCY.",
    ["provider"],
    multiprocess_mode="livesum",
)
BREAKER = Gauge(
    "travelrec_model_breaker",
    "Breaker before a provider: 0 closed, 1 a probe is on its way, 2 open.",
    ["provider"],
    multiprocess_mode="livemax",
)
GUARD = Gauge(
    "travelrec_guard",
    "Guard before all runs: 0 closed; when nearly all jobs failed alike 1 some show whether they still do, 2 none.",
    ["topic"],
    multiprocess_mode="livemax",
)
HELD = Counter(
    "travelrec_jobs_held_total",
    "Failures that did not count because nearly all jobs failed alike.",
    ["reason"],
)
PAUSES = Counter(
    "travelrec_intake_pauses_total",
    "Times that no more jobs were taken: the provider (breaker, rate limit), or the guard.",
    ["reason"],
)

# --- trips: the API that makes them up, and the workers that join them ------------------------------------

TRIPS_MADE = Counter("travelrec_trips_made_total", "Trips whose records were all acknowledged by the broker.")
TRIP_RECORDS = Counter(
    "travelrec_trip_records_total",
    "Delivery reports of trip records, by topic and by whether the broker acknowledged them.",
    ["topic", "outcome"],
)
TRIPS_CLOSED = Counter(
    "travelrec_trips_closed_total",
    "Trips published by the join: joined, incomplete when their time was over, or late after that.",
    ["outcome"],
)
JOIN_SECONDS = Histogram(
    "travelrec_trip_join_seconds", "From a trip's first record to its joined one.", buckets=_JOB_S
)
TRIPS_OPEN = Gauge(
    "travelrec_trips_open",
    "Trips that wait for records or for being published, as counted in the store: 100,000 at most.",
    multiprocess_mode="livemax",
)

# --- what stands in the store and the broker: every worker looks, and all say the same; take the maximum --

WAITING = Gauge(
    "travelrec_jobs_waiting",
    "Accepted jobs that have not ended, those being run included, as counted in the store: 100,000 at most.",
    multiprocess_mode="livemax",
)
OLDEST_WAITING = Gauge(
    "travelrec_oldest_waiting_seconds",
    "Age of the oldest job that has not ended; 0 when there is none.",
    multiprocess_mode="livemax",
)
LAG = Gauge(
    "travelrec_consumer_lag",
    "Messages of a partition that no worker has taken.",
    ["topic", "partition"],
    multiprocess_mode="livemax",
)
DEPENDENCY_UP = Gauge(
    "travelrec_dependency_up",
    "Whether this worker reaches its store, broker and signals.",
    ["dependency"],
    multiprocess_mode="livemin",
)
SWEPT = Counter("travelrec_sweeper_published_total", "Messages published by the sweeper.")
PURGED = Counter("travelrec_jobs_purged_total", "Ended jobs deleted after their retention.")

# --- tasks: the API's processes, and the roles submit and poll -------------------------------------------

TASKS_CREATED = Counter(
    "travelrec_tasks_created_total", "Tasks created, by the status they came with.", ["status"]
)
TASKS = Gauge(
    "travelrec_tasks",
    "Tasks of each status, as counted in the store: every worker that submits sees the same.",
    ["status"],
    multiprocess_mode="livemax",
)
SUBMISSIONS = Counter(
    "travelrec_task_submissions_total",
    "Calls that submit a task: accepted, refused, failed (an attempt) or away (none); late: given up, not made.",
    ["outcome"],
)
SUBMISSION_SECONDS = Histogram(
    "travelrec_task_submission_seconds", "One call that submits a task.", ["outcome"], buckets=_ANSWER_S
)
TASK_WAIT_SECONDS = Histogram(
    "travelrec_task_wait_seconds", "From a task's creation until the third party had it.", buckets=_JOB_S
)
POLLS = Counter("travelrec_task_polls_total", "Questions to the third party about its tasks.", ["outcome"])
POLL_SECONDS = Histogram(
    "travelrec_task_poll_seconds", "One question, and writing down what it said.", buckets=_ANSWER_S
)
ROWS = Counter(
    "travelrec_task_rows_total",
    "Rows of its answers: moved a task, known (no move), unknown (not ours), bad (can't be read).",
    ["outcome"],
)


# --- chat: the API's processes, and the roles chat and relay ---------------------------------------------

CHAT_CONNECTIONS = Gauge("travelrec_chat_connections", "Open chat connections.", multiprocess_mode="livesum")
CHAT_REFUSED = Counter(
    "travelrec_chat_refused_total", "Handshakes refused for their token, userid or origin."
)
CHAT_MESSAGES = Counter(
    "travelrec_chat_messages_total", "Frames of users: accepted by the broker, or refused.", ["outcome"]
)
CHAT_LIMITED = Counter("travelrec_chat_limited_total", "Messages over their user's rate limit.")
CHAT_REPLIES = Counter("travelrec_chat_replies_total", "Messages that were answered, or failed.", ["outcome"])
CHAT_REPEATS = Counter(
    "travelrec_chat_repeats_total", "Messages and replies that were delivered again, and dropped.", ["role"]
)
CHAT_SECONDS = Histogram(
    "travelrec_chat_seconds",
    "From a message's acceptance until its answer is in the history.",
    buckets=_MODEL_S,
)


def exposition(accept: str) -> tuple[bytes, str]:
    """What `/metrics` answers to a scraper that accepts these types, and its type.

    Of this process, or of all processes of this gunicorn.
    """
    registry: CollectorRegistry = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # prometheus_client leaves it untyped
    try:
        encode, content_type = choose_encoder(accept)
    except TypeError:  # a version that is no number
        encode, content_type = choose_encoder("")
    return encode(registry), content_type

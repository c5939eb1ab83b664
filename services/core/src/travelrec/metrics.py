"""Every metric in one list: name, type, labels, meaning. Labels have few values; a uid is never one."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)

HTTP_REQUESTS = Counter(
    "travelrec_http_requests_total",
    "Requests answered, by route template and status.",
    ["method", "route", "status"],
)
HTTP_SECONDS = Histogram(
    "travelrec_http_request_seconds", "Time to answer a request.", ["route"], buckets=_SECONDS
)
ACCEPTED = Counter("travelrec_jobs_accepted_total", "Jobs made durable and answered with a uid.", ["kind"])
PUBLISH_FAILED = Counter(
    "travelrec_publish_failed_total", "Accepted jobs whose message was left to the sweeper."
)
WAITERS = Gauge(
    "travelrec_waiters", "Long polls and event streams that wait for a job.", multiprocess_mode="livesum"
)
CLAIMED = Counter("travelrec_jobs_claimed_total", "Jobs leased by a worker.", ["kind"])
NOT_CLAIMED = Counter(
    "travelrec_messages_dropped_total", "Messages whose job was finished or leased elsewhere."
)
FINISHED = Counter("travelrec_jobs_finished_total", "Jobs that ended, by outcome.", ["kind", "outcome"])
RETRIED = Counter("travelrec_jobs_retried_total", "Attempts that will be tried again, by reason.", ["reason"])
LOST_LEASES = Counter("travelrec_leases_lost_total", "Runs whose result no longer counted.")
FOLLOWERS = Counter("travelrec_jobs_followed_total", "Jobs that took the outcome of another's run.")
CACHE_HITS = Counter(
    "travelrec_cache_hits_total", "Jobs that took an earlier answer, by where it was found.", ["at"]
)
IN_FLIGHT = Gauge("travelrec_jobs_in_flight", "Jobs being run by this worker.", multiprocess_mode="livesum")
WAIT_SECONDS = Histogram(
    "travelrec_job_wait_seconds", "From acceptance to claim.", ["kind"], buckets=_SECONDS
)
MODEL_SECONDS = Histogram("travelrec_model_call_seconds", "One model call.", ["outcome"], buckets=_SECONDS)
TOKENS = Counter("travelrec_model_tokens_total", "Tokens as the provider counts them.", ["direction"])
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
PAUSES = Counter(
    "travelrec_intake_pauses_total", "Times that no more jobs were taken because of the provider.", ["reason"]
)
SWEPT = Counter("travelrec_sweeper_published_total", "Messages published by the sweeper.")
PURGED = Counter("travelrec_jobs_purged_total", "Ended jobs deleted after their retention.")
DEAD_LETTERS = Counter("travelrec_dead_letters_total", "Copies written to a dead-letter topic.", ["topic"])
SIGNALS_SENT = Counter("travelrec_signals_sent_total", "Signals of ended jobs sent.")
SIGNALS_HEARD = Counter("travelrec_signals_heard_total", "Signals of ended jobs heard.")

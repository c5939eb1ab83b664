"""The traces of tasks, as a collector receives them, and the metrics beside them."""

import sys
from pathlib import Path

import aiohttp
import pytest

from support import eventually, free_port
from support.collector import collecting
from travelrec.fake_tasks import FakeTasksSettings, running

TRAVELREC = Path(sys.executable).with_name("travelrec")


@pytest.mark.asyncio
@pytest.mark.timeout(60)
async def test_a_task_is_one_trace_from_its_creation_to_its_submission(new_process, tmp_path) -> None:
    """The submission is below the request that created the task; each poll is a trace of its own; all is counted."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    async with collecting() as collector, running(FakeTasksSettings(work_s=0.0)) as fake:
        env = {
            "TASKS_PROVIDER_URL": fake.url,
            "TASKS_POLL_INTERVAL": "0.3",
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }
        serve = new_process([TRAVELREC, "serve", "--port", str(port), "--data", tmp_path], env=env)
        await serve.wait_for_http(f"{url}/readyz")
        async with aiohttp.ClientSession(url) as http:
            async with http.post("/api/tasks", json={"id": "mine"}) as created:
                assert created.status == 201
                trace_id = created.headers["traceresponse"].split("-")[1]
            request, submission = await collector.trace(trace_id, "POST /api/tasks", "submit task")
            assert submission.parent_id == request.span_id
            assert (submission.kind, submission.failed) == ("CLIENT", False)

            def polled() -> bool:
                polls = [span for span in collector.spans if span.name == "poll tasks"]
                return any(span.attributes["travelrec.tasks.moved"] == 1 for span in polls)

            await eventually(polled)
            async with http.get("/metrics") as response:
                text = await response.text()
            for line in (
                'travelrec_tasks_created_total{status="Not Started"} 1.0',
                'travelrec_task_submissions_total{outcome="accepted"} 1.0',
                'travelrec_task_rows_total{outcome="moved"} 1.0',
            ):
                assert line in text

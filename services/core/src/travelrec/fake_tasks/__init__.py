"""The offline third party: takes tasks, moves them on with time, and says how they are.

`async with running() as fake:` starts it inside a test or a process, `serve_until_stopped` is the command's.
"""

from travelrec.fake_tasks.server import FakeTasks, FakeTasksSettings, running, serve_until_stopped

__all__ = ["FakeTasks", "FakeTasksSettings", "running", "serve_until_stopped"]

"""The offline model: an OpenAI-compatible HTTP server that needs no key, no network and no money.

`async with running() as fake:` starts it inside a test or a process, `serve_until_stopped` is the command's.
"""

from travelrec.fake_openai.server import FakeOpenAI, Stats, running, serve_until_stopped
from travelrec.fake_openai.settings import FAULTS, FakeSettings, parse_fault

__all__ = ["FAULTS", "FakeOpenAI", "FakeSettings", "Stats", "parse_fault", "running", "serve_until_stopped"]

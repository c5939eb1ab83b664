"""For all tests of the workspace: real servers and when tests run on them, see tests/support/plugin.py."""

pytest_plugins = ["support.plugin"]

"""Slow, flaky, paid-for model calls behind an API that answers at once."""

"""Chat under fire: the load of `chat`, in which everything is killed or stopped in turn.

SIGKILL of an API, of a chat worker and of the relay, each started again after two seconds; a restart of Redis; Kafka
stopped for ten seconds. Clients reconnect with `since`, and say again with the same id what is not answered.
"""

from bench import chat


def run() -> str:
    """The table."""
    return chat.run(faults=True)

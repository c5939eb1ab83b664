"""The project's own compose file, brought up from a copy of the tree under a name and ports of its own."""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from support.ports import free_port, release_port, unique_name
from support.processes import INHERITED, make_folder, remove_folder

ROOT = Path(__file__).parents[2]
COPIED = (
    *("docker-compose.yml", "Dockerfile", ".dockerignore", "docker", "loadtest", "observability"),
    *("pyproject.toml", "uv.lock", "services", "tests/pyproject.toml"),
)
OF_DOCKER = ("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG", "COMPOSE_BAKE", "DOCKER_BUILDKIT")


class Compose:
    """A project of `docker compose`; `close` removes all of it and says what was left behind."""

    def __init__(self, **settings: str) -> None:
        self.name = unique_name("travelrec")
        self.ports = {port: free_port() for port in ("3000", "8080", "9090")}
        self._folder = make_folder("compose")
        for name in COPIED:
            if (ROOT / name).is_dir():
                ignored = shutil.ignore_patterns("__pycache__", ".travelrec", ".venv", "out", "tests")
                shutil.copytree(ROOT / name, self._folder / name, ignore=ignored)
            else:
                (self._folder / name).parent.mkdir(exist_ok=True)
                shutil.copy2(ROOT / name, self._folder / name)
        (self._folder / ".env").write_text("".join(f"{k}={v}\n" for k, v in settings.items()))
        self.tag = self.name.rpartition("-")[2]
        self._env = {k: os.environ[k] for k in (*INHERITED, *OF_DOCKER) if k in os.environ}
        self._env |= {"TRAVELREC_TAG": self.tag, "BUILDKIT_PROGRESS": "plain"}
        self._env |= {f"PUBLISH_{port}": str(free) for port, free in self.ports.items()}

    def run(self, *arguments: str, timeout_s: float = 300.0, **env: str) -> str:
        """stdout of `docker compose ARGUMENTS`; raises AssertionError with what it said when it fails."""
        return docker("compose", "--project-name", self.name, *arguments, cwd=self._folder,
                      env={**self._env, **env}, timeout_s=timeout_s)  # fmt: skip

    def up(self, *arguments: str) -> None:
        """Start what does not run, and return when all of it is healthy."""
        self.run("up", "--detach", "--wait", "--wait-timeout", "180", *arguments)

    def containers(self, service: str | None = None) -> list[dict[str, Any]]:
        """`docker inspect` of the containers, all or those of a service, in the order of their numbers."""
        ids = self.run("ps", "--all", "--quiet", *([service] if service else [])).split()
        found: list[dict[str, Any]] = json.loads(docker("inspect", *ids)) if ids else []
        return sorted(found, key=lambda c: str(c["Name"]))

    def url(self, port: str = "8080") -> str:
        """Where this machine reaches what the file publishes as `port`."""
        return f"http://127.0.0.1:{self.ports[port]}"

    def close(self) -> list[str]:
        """Remove all of it; return the names of what is still there."""
        self.run("--profile", "*", "down", "--volumes", "--remove-orphans", "--timeout", "20")
        mine = f"label=com.docker.compose.project={self.name}"
        left = docker("ps", "--all", "--quiet", "--filter", mine).split()
        for kind in ("volume", "network"):
            left += docker(kind, "ls", "--quiet", "--filter", mine).split()
        docker("rmi", f"travelrec/api:{self.tag}", f"travelrec/worker:{self.tag}")
        remove_folder(self._folder)
        for port in self.ports.values():
            release_port(port)
        return left


def docker(
    *arguments: str, cwd: Path | None = None, env: Mapping[str, str] | None = None, timeout_s: float = 60.0
) -> str:
    """stdout of `docker ARGUMENTS`; raises AssertionError with what it said when it fails."""
    done = subprocess.run(["docker", *arguments], cwd=cwd, env=env, capture_output=True, text=True,
                          timeout=timeout_s, check=False)  # fmt: skip
    assert done.returncode == 0, (
        f"docker {' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}"
    )
    return done.stdout

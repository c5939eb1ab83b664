"""Installs the servers of the real tests outside the tree: `python -m support.install [--check]`."""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from support.installed import DATA, JAVA_SERVERS, JAVA_VERSION, NEEDS, JavaServer, NotInstalledError, cache


def install(server: JavaServer) -> None:
    """Build it in a temporary folder and move that into place; of two racers the second one gives way."""
    _check_java()
    cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{server.name}-", dir=cache()) as temporary:
        built = Path(temporary) / "built"
        built.mkdir()
        pom, *sources = [str(DATA / file) for file in server.files]
        goal = "unpack-dependencies" if server.is_archive else "copy-dependencies"
        copy = [f"dependency:{goal}", f"-DoutputDirectory={built / 'libs'}"]
        _run(["mvn", "-q", "-B", "-f", pom, *copy])
        if sources:
            _run(["javac", "-cp", f"{built}/libs/*", "-d", str(built), *sources])
        try:
            built.rename(server.folder)
        except OSError:
            if not server.folder.is_dir():
                raise


def _run(command: Sequence[str]) -> None:
    if shutil.which(command[0]) is None:
        raise NotInstalledError(f"no `{command[0]}` on the PATH; it needs a JDK {JAVA_VERSION} and Maven")
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise NotInstalledError(
            f"`{' '.join(command)}` failed with {done.returncode}:\n{done.stdout[-4000:]}"
        )


def _check_java() -> None:
    java = shutil.which("java")
    if java is None:
        raise NotInstalledError(f"no `java` on the PATH; it needs a JDK {JAVA_VERSION} and Maven")
    said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    found = re.search(r'version "(\d+)', said)
    if found is None or int(found[1]) < JAVA_VERSION:
        raise NotInstalledError(
            f"Java {JAVA_VERSION} or newer is needed; `java -version` says: {said.strip()}"
        )


def main() -> int:
    """Install what is missing, or only tell (--check); 1 when one that Maven brings is missing at the end."""
    parser = argparse.ArgumentParser(prog="support.install", description=__doc__)
    parser.add_argument("--check", action="store_true", help="only report; exit 1 when a server is missing")
    only_check = parser.parse_args().check
    failed = False
    for server in JAVA_SERVERS:
        try:
            if server.missing() is None:
                print(f"{server.title}: installed in {server.folder}")
            elif only_check:
                raise NotInstalledError(server.missing())
            else:
                begun = time.monotonic()
                install(server)
                print(f"{server.title}: installed now in {server.folder} ({time.monotonic() - begun:.1f} s)")
        except NotInstalledError as error:
            failed = True
            print(error, file=sys.stderr)
    for title, missing in (NEEDS["redis"], NEEDS["prometheus"], NEEDS["chromium"]):
        print(missing() or f"{title}: found")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

"""What judges the chart, made by Go outside the tree: Helm, helm-unittest, and the CRDs of others."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from support.installed import NotInstalledError, cache

MODULE = Path(__file__).parents[2] / "charts" / "tools"
# Go module, and its CRDs of which the chart makes objects.
CRDS = (
    (
        "github.com/kedacore/keda/v2@v2.21.0",
        "config/crd/bases/keda.sh_{}.yaml",
        "scaledobjects",
    ),
    (
        "github.com/prometheus-operator/prometheus-operator@v0.85.0",
        "example/prometheus-operator-crd/monitoring.coreos.com_{}.yaml",
        "servicemonitors podmonitors prometheusrules",
    ),
    ("sigs.k8s.io/gateway-api@v1.4.0", "config/crd/standard/gateway.networking.k8s.io_{}.yaml", "httproutes"),
)


def folder() -> Path:
    """Where they are once made; the name follows from what they are made of."""
    said = b"".join((MODULE / name).read_bytes() for name in ("go.mod", "go.sum")) + repr(CRDS).encode()
    return cache() / f"chart-tools-{hashlib.sha256(said).hexdigest()[:12]}"


def missing() -> str | None:
    """What is missing to render and to judge the chart, None when nothing is."""
    return None if folder().is_dir() else "Helm: not installed; run `task chart:tools` (needs Go)"


def tool(name: str) -> str:
    """The path of `helm` or `helm-unittest`."""
    return str(folder() / name)


def install() -> None:
    """Makes them in a temporary folder and moves that into place; of two racers the second one gives way."""
    if shutil.which("go") is None:
        raise NotInstalledError("no `go` on the PATH; the chart's tools are built with it")
    cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".chart-tools-", dir=cache()) as temporary:
        built = Path(temporary) / "built"
        crds = built / "crds"
        crds.mkdir(parents=True)
        for module, file, names in CRDS:
            source = Path(json.loads(_go("mod", "download", "-json", module))["Dir"])
            for name in names.split():
                shutil.copy(source / file.format(name), crds)
        _go("install", "-trimpath", "-ldflags", "-s -w", "tool", GOBIN=str(built))
        try:
            built.rename(folder())
        except OSError:
            if not folder().is_dir():
                raise


def _go(*arguments: str, **environment: str) -> str:
    command = ["go", "-C", str(MODULE), *arguments]
    environment = {**os.environ, "CGO_ENABLED": "0", **environment}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise NotInstalledError(f"`{' '.join(command)}` failed:\n{(done.stdout + done.stderr)[-4000:]}")
    return done.stdout


def main() -> int:
    """Installs them if they are missing; 1 when they can't be had."""
    begun = time.monotonic()
    try:
        if missing() is not None:
            install()
    except NotInstalledError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"the chart's tools are in {folder()} ({time.monotonic() - begun:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())

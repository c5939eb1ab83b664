#!/usr/bin/env bash
# What CI runs where it has kind: makes the cluster, tries what the chart promises, removes the cluster (KEEP=1 leaves it).
set -euo pipefail
cd "$(dirname "$0")/../.."
[ -n "${KEEP:-}" ] || trap k8s/kind/down.sh EXIT
k8s/kind/up.sh
uv run python k8s/kind/e2e.py "$@"

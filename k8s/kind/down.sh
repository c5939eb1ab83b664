#!/usr/bin/env bash
# Removes the cluster that up.sh made, and all that is in it.
set -euo pipefail
kind delete cluster --name "${CLUSTER:-travelrec}"

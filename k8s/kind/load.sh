#!/usr/bin/env bash
# Loads the API from inside the cluster that up.sh made, and shows what came of it: USERS=200 RUN_TIME=2m load.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
CLUSTER=${CLUSTER:-travelrec} NAMESPACE=${NAMESPACE:-travelrec}

DOCKER_BUILDKIT=1 docker build --quiet --target load --tag travelrec/load:dev .
kind load docker-image --name "$CLUSTER" travelrec/load:dev
kubectl="kubectl --context kind-$CLUSTER --namespace $NAMESPACE"
$kubectl delete job load --ignore-not-found
kubectl set env --local --filename k8s/kind/load.yaml --output yaml \
  LOCUST_USERS="${USERS:-50}" LOCUST_RUN_TIME="${RUN_TIME:-1m}" | $kubectl apply --filename -
$kubectl wait --for=condition=Ready pod --selector job-name=load --timeout=60s
$kubectl logs --follow job/load
$kubectl wait --for=condition=Complete job/load --timeout=30s

#!/usr/bin/env bash
# Makes a kind cluster with KEDA and Travelrec in it: images, cluster, KEDA, chart, one real request. Safe to repeat.
# KEDA_MANIFEST: a file or an address, if not the release's own.  TAG: of the images, default dev.  BROKER: kafka (default)
# or rabbitmq.
set -euo pipefail
cd "$(dirname "$0")/../.."

CLUSTER=${CLUSTER:-travelrec} NAMESPACE=${NAMESPACE:-travelrec} TAG=${TAG:-dev} BROKER=${BROKER:-kafka}
KEDA=2.21.0
KEDA_MANIFEST=${KEDA_MANIFEST:-https://github.com/kedacore/keda/releases/download/v$KEDA/keda-$KEDA.yaml}
case $BROKER in
  kafka) SERVERS=(apache/kafka:4.1.0 mongo:8.0) ;;
  rabbitmq) SERVERS=(rabbitmq:3.13 mongo:8.0) ;;
  *) echo "BROKER: kafka or rabbitmq, not $BROKER" >&2; exit 2 ;;
esac

step() { # NAME COMMAND...: prints the name, runs the command, prints how long it took
  local begun=$SECONDS
  printf '\n=== %s\n' "$1"
  "${@:2}"
  printf -- '--- %s: %d s\n' "$1" $((SECONDS - begun))
}

need() { # COMMAND WHERE...: says where to get what is missing
  command -v "$1" >/dev/null && return
  echo "missing: $1 (${*:2})" >&2
  missing=1
}

check_tools() {
  missing=
  need docker "https://docs.docker.com/engine/install/"
  need kind "https://kind.sigs.k8s.io/docs/user/quick-start/#installation"
  need kubectl "https://kubernetes.io/docs/tasks/tools/"
  need helm "https://helm.sh/docs/intro/install/"
  [ -z "$missing" ] || exit 1
  docker info >/dev/null 2>&1 || { echo "missing: a Docker engine that answers" >&2; exit 1; }
}

build_images() {
  local target
  for target in api worker; do
    DOCKER_BUILDKIT=1 docker build --quiet --target "$target" --tag "travelrec/$target:$TAG" .
  done
}

make_cluster() {
  if kind get clusters 2>/dev/null | grep -qx "$CLUSTER"; then
    kind export kubeconfig --name "$CLUSTER"
  else
    kind create cluster --name "$CLUSTER" --config k8s/kind/cluster.yaml --wait 180s
  fi
}

load_images() { # ours, the servers, and of KEDA's those that are here: what is loaded need not be pulled by the node
  local image images=("travelrec/api:$TAG" "travelrec/worker:$TAG" "${SERVERS[@]}")
  for image in "${SERVERS[@]}"; do
    docker image inspect "$image" >/dev/null 2>&1 || docker pull --quiet "$image"
  done
  for image in ghcr.io/kedacore/{keda,keda-metrics-apiserver,keda-admission-webhooks}:$KEDA; do
    if docker image inspect "$image" >/dev/null 2>&1; then images+=("$image"); fi
  done
  kind load docker-image --name "$CLUSTER" "${images[@]}"
}

install_keda() {
  kubectl apply --server-side --force-conflicts -f "$KEDA_MANIFEST" >/dev/null
  kubectl --namespace keda rollout status deployment --timeout=180s
  kubectl wait --for=condition=Available apiservice/v1beta1.external.metrics.k8s.io --timeout=120s
}

install_chart() {
  local again=
  if helm status travelrec --namespace "$NAMESPACE" >/dev/null 2>&1; then again=1; fi
  kubectl create namespace "$NAMESPACE" --dry-run=client -o yaml | kubectl apply -f -
  kubectl label --overwrite namespace "$NAMESPACE" pod-security.kubernetes.io/enforce=restricted
  helm upgrade --install travelrec charts/travelrec --namespace "$NAMESPACE" --values k8s/kind/values.yaml \
    --set image.tag="$TAG",dev.broker="$BROKER" --wait --timeout 5m
  if [ -n "$again" ]; then # the images have the same name as before
    kubectl --namespace "$NAMESPACE" rollout restart deployment
    kubectl --namespace "$NAMESPACE" rollout status deployment --timeout=180s
  fi
}

step "tools" check_tools
step "images" build_images
step "cluster" make_cluster
export KUBECONFIG=${KUBECONFIG:-$HOME/.kube/config}
kubectl config use-context "kind-$CLUSTER" >/dev/null
step "load images" load_images
step "KEDA $KEDA" install_keda
step "chart" install_chart
step "helm test" helm test travelrec --namespace "$NAMESPACE"
printf '\nThe API is on http://localhost:30080 (task smoke -- --url http://localhost:30080); task kind:down removes the cluster. (%d s)\n' $SECONDS

# shellcheck shell=bash
# What hack/e2e and hack/kind-up both do: install the chart so that it fits a small machine, and ask for the key.
# Sourced; NAMESPACE, RELEASE, HELM, KUBECTL and the images' names (OPERATOR_IMAGE, SERVING_IMAGE) are the caller's.

k() { "$KUBECTL" -n "$NAMESPACE" "$@"; }

# helm_upgrade OPTION...: installs or upgrades. The requests are what a laptop has: they are no advice. Two Ray clusters
# fit into two cores for the time of an upgrade (KubeRay's init containers ask for 200m in each worker's pod), and what
# everybody waits for, the ledger, has a share.
helm_upgrade() {
  "$HELM" upgrade --install "$RELEASE" charts/tollway -n "$NAMESPACE" --wait --timeout 5m \
    --set "images.operator.repository=${OPERATOR_IMAGE%:*},images.operator.tag=${OPERATOR_IMAGE##*:}" \
    --set "images.serving.repository=${SERVING_IMAGE%:*},images.serving.tag=${SERVING_IMAGE##*:}" \
    --set ray.head.cpu=150m,ray.head.memory=2Gi,ray.gateway.cpu=100m,ray.gateway.memory=1Gi \
    --set ray.models.cpu=100m,ray.models.memory=2Gi \
    --set operator.requests.cpu=20m,redis.requests.cpu=20m,ledger.postgresql.requests.cpu=100m "$@"
}

quickstart() {
  k apply -f examples/quickstart
  k wait --for=condition=Ready modeldeployment/smollm2 apikey/me --timeout=5m
}

# secret NAME KEY
secret() { k get secret "$1" -o "go-template={{.data.$2 | base64decode}}"; }

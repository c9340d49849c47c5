# shellcheck shell=bash
# shellcheck disable=SC2154 # work is hack/e2e's
# hack/e2e's first steps, up to a steady load, and its last ones. Sourced.

images() {
  local builder
  if [[ -z "${BUILDER:-}" ]]; then echo "skipped: no BUILDER, so the images are there already"; return; fi
  read -ra builder <<< "$BUILDER"
  hack/cluster/images "$TAG" "${builder[@]}"
  "${builder[@]}" -t "tollway-serving:$TAG-next" ${BASE:+--build-arg "BASE=$BASE"} -f serving/Dockerfile .
}

# shellcheck disable=SC2120 # other files give it options
install_platform() {
  local options=()
  [[ "${VOLUMES:-yes}" != no ]] || options=(--set "redis.storage=,ledger.postgresql.storage=")
  helm_upgrade --set ray.drainSeconds=10,ray.autoscaler.idleSeconds=10 \
    --set "images.postgresql.repository=${POSTGRESQL_IMAGE%:*},images.postgresql.tag=${POSTGRESQL_IMAGE##*:}" \
    --set "images.redis.repository=${REDIS_IMAGE%:*},images.redis.tag=${REDIS_IMAGE##*:}" "${options[@]}" "$@"
}

install() {
  "$KUBECTL" create namespace "$NAMESPACE"
  "$KUBECTL" label namespace "$NAMESPACE" pod-security.kubernetes.io/enforce=restricted
  install_platform
}

model_ready() { quickstart; }

openai_sdk() {
  local out=$work/forward forward port=""
  k port-forward "service/$RELEASE" :80 > "$out" &
  forward=$!
  for _ in $(seq 100); do
    port=$(sed -n 's/^Forwarding from 127.0.0.1:\([0-9]*\) .*/\1/p' "$out")
    [[ -z "$port" ]] || break
    sleep 0.2
  done
  OPENAI_BASE_URL=http://127.0.0.1:$port/v1 OPENAI_API_KEY=$(secret me OPENAI_API_KEY) \
    .venv/bin/python - <<TALK || { kill "$forward"; return 1; }
import openai
client = openai.OpenAI()
question = [{"role": "user", "content": "What is a toll road?"}]
stream = client.chat.completions.create(model="smollm2", messages=question, max_tokens=24, stream=True)
said = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
assert said, "an empty answer"
print(said)
TALK
  kill "$forward"
}

helm_test() { "$HELM" test "$RELEASE" -n "$NAMESPACE" --timeout 4m; }

# program NAME IMAGE SECRET: a pod that runs hack/cluster/NAME.py with a Secret's entries in its environment
program() {
  k create configmap "$1" --from-file="hack/cluster/$1.py"
  k apply -f - <<POD
apiVersion: v1
kind: Pod
metadata: {name: $1, labels: {app: $1}}
spec:
  terminationGracePeriodSeconds: 0
  automountServiceAccountToken: false
  securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
  containers:
  - name: $1
    image: $2
    command: [python, /program/$1.py]
    env:
    - {name: URL, value: "http://$RELEASE/v1"}
    - {name: MODEL, value: smollm2}
    envFrom: [{secretRef: {name: $3}}]
    resources: {requests: {cpu: 10m, memory: 64Mi}}
    securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
    volumeMounts: [{name: program, mountPath: /program}]
  volumes: [{name: program, configMap: {name: $1}}]
POD
  k wait --for=condition=Ready "pod/$1" --timeout=2m
}

# key NAME: of the plan "load"
key() {
  k apply -f - <<KEY
apiVersion: tollway.dev/v1alpha1
kind: ApiKey
metadata: {name: $1}
spec: {planRef: {name: load}, secretName: $1}
KEY
}

steady_load() {
  k apply -f - <<PLAN
apiVersion: tollway.dev/v1alpha1
kind: Plan
metadata: {name: load}
spec: {displayName: Load}
PLAN
  key load
  k wait --for=condition=Ready apikey/load --timeout=1m
  sleep 5 # until every gateway has read of it
  program load "$OPERATOR_IMAGE" load
  until [[ "$(load | field sent)" -gt 0 ]]; do sleep 1; done
  [[ "$(load | field failed)" == 0 ]] || { load; return 1; }
}

uninstall() {
  k delete --ignore-not-found pod/load pod/weights
  "$HELM" uninstall "$RELEASE" -n "$NAMESPACE" --wait --timeout 5m
  [[ -z "$(k get rayclusters,deployments,services,jobs -l "app.kubernetes.io/instance=$RELEASE" -o name)" ]]
  k get modeldeployment/smollm2 apikey/me secret/me "secret/$RELEASE-ledger" # kept
  "$KUBECTL" delete namespace "$NAMESPACE" --timeout=2m # no finalizer holds anything
}

# The other order: the namespace goes with everything in it at once. Kubernetes deletes pods first and, as it counts on their
# whole grace period, looks again minutes later, however soon they are gone. Then it deletes the rest; KubeRay can't clean
# Redis up any more and keeps its finalizer, which somebody has to take away (docs/troubleshooting.md).
namespace_deleted_first() {
  local cluster
  install
  quickstart
  "$KUBECTL" delete namespace "$NAMESPACE" --wait=false
  cluster=$(k get rayclusters -l "tollway.dev/platform=$RELEASE" -o name)
  k wait "$cluster" --for='jsonpath={.metadata.deletionTimestamp}' --timeout=7m
  k patch "$cluster" --type=merge -p '{"metadata": {"finalizers": null}}'
  "$KUBECTL" wait "namespace/$NAMESPACE" --for=delete --timeout=2m
}

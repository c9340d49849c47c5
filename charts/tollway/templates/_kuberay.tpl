{{/* The operator's settings file (tollway_operator.kuberay_settings). */}}
{{- define "tollway.kuberay" -}}
{{- $ray := .Values.ray -}}
name: {{ include "tollway.name" . }}
rayVersion: {{ $ray.version | quote }}
image: {{ include "tollway.image" .Values.images.serving }}
imagePullPolicy: {{ .Values.images.pullPolicy }}
imagePullSecrets: {{ toJson .Values.imagePullSecrets }}
runAsUser: {{ $ray.runAsUser | toJson }}
labels:
  app.kubernetes.io/name: tollway
  app.kubernetes.io/instance: {{ .Release.Name }}
env: {{ toJson $ray.env }}
platformSecret: {{ include "tollway.platformSecret" . }}
providersSecret: {{ include "tollway.providersSecret" . }}
sourcesSecret: {{ include "tollway.sourcesSecret" . }}
ledgerSecret: {{ include "tollway.ledgerSecret" . }}
ledgerKey: {{ include "tollway.ledgerKey" . }}
head: {{ toJson $ray.head }}
gateway: {{ toJson $ray.gateway }}
models:
  {{- toYaml (omit $ray.models "cache") | nindent 2 }}
  {{- with $ray.models.cache }}
  cache: {{ toJson . }}
  {{- end }}
autoscaler: {{ toJson $ray.autoscaler }}
drainSeconds: {{ $ray.drainSeconds }}
{{- if .Values.redis.externalAddress }}
redis:
  address: {{ .Values.redis.externalAddress }}
  {{- with .Values.redis.externalPasswordSecret }}
  passwordSecret: {{ . }}
  {{- end }}
{{- else if .Values.redis.enabled }}
redis:
  address: {{ include "tollway.name" . }}-redis.{{ .Release.Namespace }}:6379
{{- end }}
{{- end }}

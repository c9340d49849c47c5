{{/* Names. The Ray clusters' names begin with the release's, and pods' names hold them: at most 30 characters. */}}
{{- define "tollway.name" -}}
{{- if gt (len .Release.Name) 30 }}{{ fail "the release's name has more than 30 characters: pods' names would not fit" }}{{ end -}}
{{ .Release.Name }}
{{- end }}
{{- define "tollway.operator" -}}{{ include "tollway.name" . }}-operator{{- end }}
{{- define "tollway.platformSecret" -}}{{ .Values.platformSecret.existing | default (printf "%s-platform" (include "tollway.name" .)) }}{{- end }}
{{- define "tollway.providersSecret" -}}{{ include "tollway.name" . }}-providers{{- end }}
{{- define "tollway.sourcesSecret" -}}{{ include "tollway.name" . }}-sources{{- end }}
{{- define "tollway.ledgerSecret" -}}{{ .Values.ledger.existingSecret | default (printf "%s-ledger" (include "tollway.name" .)) }}{{- end }}
{{- define "tollway.ledgerKey" -}}{{ if .Values.ledger.existingSecret }}{{ .Values.ledger.existingSecretKey }}{{ else }}database-url{{ end }}{{- end }}
{{- define "tollway.managesRay" -}}{{ if not .Values.ray.existingAddress }}true{{ end }}{{- end }}
{{- define "tollway.ownRedis" -}}{{ if and (include "tollway.managesRay" .) .Values.redis.enabled (not .Values.redis.externalAddress) }}true{{ end }}{{- end }}
{{- define "tollway.ownPostgresql" -}}{{ if and .Values.ledger.postgresql.enabled (not .Values.ledger.existingSecret) }}true{{ end }}{{- end }}

{{- define "tollway.image" -}}{{ .repository }}:{{ .tag }}{{- end }}

{{- define "tollway.labels" -}}
app.kubernetes.io/name: tollway
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* Labels of one component's pods: call with a list of the root and the component. */}}
{{- define "tollway.selector" -}}
app.kubernetes.io/name: tollway
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "tollway.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{/* What the restricted Pod Security Standard asks for. */}}
{{- define "tollway.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}
{{- define "tollway.podSecurity" -}}
runAsNonRoot: true
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "tollway.baseUrl" -}}
{{- if .Values.baseUrl }}{{ .Values.baseUrl }}
{{- else if .Values.ingress.enabled }}http{{ if .Values.ingress.tlsSecret }}s{{ end }}://{{ required "ingress.host is missing" .Values.ingress.host }}/v1
{{- else if .Values.httpRoute.enabled }}http{{ if .Values.httpRoute.tls }}s{{ end }}://{{ required "httpRoute.hostnames is empty" (first .Values.httpRoute.hostnames) }}/v1
{{- else if include "tollway.managesRay" . }}http://{{ include "tollway.name" . }}.{{ .Release.Namespace }}.svc/v1
{{- else }}{{ fail "baseUrl is missing: with ray.existingAddress, Tollway doesn't know what clients use" }}
{{- end }}
{{- end }}

{{/* Retention of single calls. */}}
{{- define "tollway.usageDays" -}}
{{- $days := int .Values.ledger.usageDays }}
{{- if and (ne $days 0) (lt $days 45) }}{{ fail "ledger.usageDays must be 0 (for ever) or at least 45" }}{{ end }}
{{- if gt $days 36500 }}{{ fail "ledger.usageDays must be 0 (for ever) or at most 36500" }}{{ end }}
{{- $days }}
{{- end }}

{{/* The name of every object: the release's, with the chart's unless it is in it. */}}
{{- define "kmsgate.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What a pod of this release is known by. It never changes. */}}
{{- define "kmsgate.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "kmsgate.labels" -}}
{{ include "kmsgate.selector" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "kmsgate.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}

{{/* Whether etcd's Secret is needed. */}}
{{- define "kmsgate.etcdSecret" -}}
{{- $etcd := .Values.store.etcd -}}
{{- if and (eq .Values.store.kind "etcd") (or $etcd.ca $etcd.clientCertificate $etcd.user) -}}
{{ required "store.etcd.secretName is needed for ca, clientCertificate and user" $etcd.secretName }}
{{- end -}}
{{- end -}}

{{/* Refuses values that contradict each other. */}}
{{- define "kmsgate.check" -}}
{{- if and .Values.tls.enabled (ne .Values.mesh "none") -}}
{{- fail "tls.enabled and mesh: one of them encrypts. Set tls.enabled to false" -}}
{{- end -}}
{{- if and (not .Values.tls.enabled) (eq .Values.mesh "none") -}}
{{- fail "without tls.enabled and without a mesh, nothing would encrypt" -}}
{{- end -}}
{{- if and .Values.tls.certManager.enabled (not .Values.tls.enabled) -}}
{{- fail "tls.certManager.enabled needs tls.enabled" -}}
{{- end -}}
{{- end -}}

{{/* The ports that callers use, of a Service. */}}
{{- define "kmsgate.ports" -}}
- name: grpc
  port: 9090
  targetPort: grpc
  protocol: TCP
  appProtocol: {{ if .Values.tls.enabled }}https{{ else if eq .Values.mesh "istio" }}grpc{{ else }}kubernetes.io/h2c{{ end }}
- name: rest
  port: 8080
  targetPort: rest
  protocol: TCP
  appProtocol: {{ if .Values.tls.enabled }}https{{ else }}http{{ end }}
{{- end -}}

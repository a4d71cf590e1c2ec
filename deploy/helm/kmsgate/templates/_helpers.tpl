{{/* The name of every object: the release's, with the chart's unless it is in it. Services take no other than these. */}}
{{- define "kmsgate.fullname" -}}
{{- $release := .Release.Name | replace "." "-" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if not (regexMatch "^[a-z]" $release) -}}
{{- fail "the name of a Service begins with a letter: set fullnameOverride, or give the release another name" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name $release -}}
{{- $release | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" $release $name | trunc 52 | trimSuffix "-" -}}
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

{{/*
The Secrets that the pod mounts, as JSON: what each is called below /etc/kmsgate, and in the cluster. Only those
that kmsgate.toml names files of, for a pod whose Secret is not there does not start.
*/}}
{{- define "kmsgate.secrets" -}}
{{- $secrets := list -}}
{{- if or .Values.rootKey.file .Values.rootKey.previous -}}
{{- $secrets = append $secrets (dict "at" "root-key" "name" .Values.rootKey.secretName) -}}
{{- end -}}
{{- with .Values.credentials -}}
{{- if or .tokens .accessKeys .policy -}}
{{- $secrets = append $secrets (dict "at" "credentials" "name" .secretName) -}}
{{- end -}}
{{- end -}}
{{- if .Values.tls.enabled -}}
{{- $secrets = append $secrets (dict "at" "tls" "name" .Values.tls.secretName) -}}
{{- with .Values.tls.clientCa.secretName -}}
{{- $secrets = append $secrets (dict "at" "client-ca" "name" .) -}}
{{- end -}}
{{- end -}}
{{- if eq .Values.store.kind "etcd" -}}
{{- $secrets = append $secrets (dict "at" "etcd" "name" .Values.store.etcd.secretName) -}}
{{- end -}}
{{- toJson $secrets -}}
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
{{- if and .Values.tls.clientCa.secretName (eq .Values.tls.clientCertificates "none") -}}
{{- fail "tls.clientCa needs tls.clientCertificates, or no client is asked for a certificate" -}}
{{- end -}}
{{- if not (or .Values.rootKey.file (regexMatch `(?m)^\s*\[pkcs11\]` .Values.config.extra)) -}}
{{- fail "without rootKey.file, config.extra needs [pkcs11] with a root_key" -}}
{{- end -}}
{{- if and (eq .Values.mesh "linkerd") (semverCompare "<1.29-0" .Capabilities.KubeVersion.Version) -}}
{{- fail "mesh: linkerd needs Kubernetes 1.29, where a sidecar may start before its pod's containers" -}}
{{- end -}}
{{- $identities := and (eq .Values.mesh "istio") .Values.istio.identities -}}
{{- $others := regexMatch `(?m)^\s*\[+auth\.(iam|jwt|mtls)\]` .Values.config.extra -}}
{{- if not (or .Values.credentials.tokens .Values.credentials.accessKeys $identities $others) -}}
{{- fail "credentials: without tokens and accessKeys, and without others in config.extra, nobody is let in" -}}
{{- end -}}
{{- if and (eq .Values.store.kind "etcd") .Values.autoscaling.enabled (not (dig "requests" "cpu" "" .Values.resources)) -}}
{{- fail "autoscaling counts in parts of resources.requests.cpu, which is not set" -}}
{{- end -}}
{{- if gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas) -}}
{{- fail "autoscaling.minReplicas is more than autoscaling.maxReplicas" -}}
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

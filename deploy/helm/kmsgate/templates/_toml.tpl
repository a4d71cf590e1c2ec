{{/* kmsgate.toml. A text as JSON writes it is one as TOML has it. */}}
{{- define "kmsgate.toml" -}}
{{- $config := .Values.config -}}
grpc = {{ printf "%s:9090" $config.address | toJson }}
rest = {{ printf "%s:8080" $config.address | toJson }}
admin = {{ printf "%s:9100" $config.address | toJson }}
{{- if not .Values.tls.enabled }}
allow_plaintext = true
{{- end }}
{{- if $config.reflection }}
reflection = true
{{- end }}
{{- if ne $config.realm "local" }}
realm = {{ $config.realm | toJson }}
{{- end }}
{{- with $config.domainId }}
domain_id = {{ toJson . }}
{{- end }}
{{- with .Values.rootKey.file }}
root_key_file = {{ printf "/etc/kmsgate/root-key/%s" . | toJson }}
{{- end }}
{{- if .Values.rootKey.previous }}
{{- $files := list }}
{{- range .Values.rootKey.previous }}
{{- $files = append $files (printf "/etc/kmsgate/root-key/%s" .) }}
{{- end }}
previous_root_key_files = {{ toJson $files }}
{{- end }}
{{- if .Values.tls.enabled }}

[tls]
certificate_file = "/etc/kmsgate/tls/tls.crt"
private_key_file = "/etc/kmsgate/tls/tls.key"
{{- if ne .Values.tls.clientCertificates "none" }}
client_ca_file = "/etc/kmsgate/{{ if .Values.tls.clientCa.secretName }}client-ca{{ else }}tls{{ end }}/ca.crt"
client_certificates = {{ .Values.tls.clientCertificates | toJson }}
{{- end }}
{{- end }}

[store]
kind = {{ .Values.store.kind | toJson }}
{{- if eq .Values.store.kind "sqlite" }}
path = "/var/lib/kmsgate/keys.db"
{{- else }}
{{- with .Values.store.etcd }}
endpoints = {{ toJson .endpoints }}
prefix = {{ toJson .prefix }}
ca_file = "/etc/kmsgate/etcd/ca.crt"
{{- if .clientCertificate }}
certificate_file = "/etc/kmsgate/etcd/tls.crt"
private_key_file = "/etc/kmsgate/etcd/tls.key"
{{- end }}
{{- if .user }}
user = {{ toJson .user }}
password_file = "/etc/kmsgate/etcd/password"
{{- end }}
max_staleness = {{ toJson .maxStaleness }}
{{- end }}
{{- end }}

[auth]
{{- if .Values.credentials.tokens }}
token_file = "/etc/kmsgate/credentials/tokens.toml"
{{- end }}
{{- if .Values.credentials.accessKeys }}
access_key_file = "/etc/kmsgate/credentials/access-keys.toml"
{{- end }}
{{- if .Values.credentials.policy }}
policy_file = "/etc/kmsgate/credentials/policy.toml"
{{- end }}
{{- if and (eq .Values.mesh "istio") .Values.istio.identities }}

[auth.forwarded]
peers = ["127.0.0.6", "::6"]
{{- range .Values.istio.identities }}

[[auth.mtls]]
identity = {{ toJson .identity }}
project = {{ toJson .project }}
{{- with .actions }}
actions = {{ toJson . }}
{{- end }}
{{- with .roles }}
roles = {{ toJson . }}
{{- end }}
{{- end }}
{{- end }}

[shutdown]
lag = "{{ $config.lagSeconds }}s"
drain = "{{ $config.drainSeconds }}s"
{{- with $config.extra }}

{{ trim . }}
{{- end }}
{{ end -}}

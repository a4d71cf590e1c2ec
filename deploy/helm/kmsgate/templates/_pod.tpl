{{/* The template of the pod, whatever makes it. */}}
{{- define "kmsgate.pod" -}}
{{- $grace := add .Values.config.lagSeconds .Values.config.drainSeconds 20 -}}
metadata:
  labels:
    {{- include "kmsgate.selector" . | nindent 4 }}
    {{- if eq .Values.mesh "istio" }}
    sidecar.istio.io/inject: "true"
    {{- end }}
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    # Pods are replaced when the configuration changes, which is read once.
    checksum/config: {{ include "kmsgate.toml" . | sha256sum }}
    kubectl.kubernetes.io/default-container: kmsgate
    {{- if eq .Values.mesh "istio" }}
    # kmsgate reaches its store through the sidecar, so the sidecar starts first. It stops when kmsgate
    # has let its connections end. What callers themselves say of their certificates goes no further.
    proxy.istio.io/config: |
      holdApplicationUntilProxyStarts: true
      proxyHeaders:
        forwardedClientCert: SANITIZE_SET
      proxyMetadata:
        EXIT_ON_ZERO_ACTIVE_CONNECTIONS: "true"
    {{- else if eq .Values.mesh "linkerd" }}
    linkerd.io/inject: enabled
    # kmsgate reaches its store through the proxy, so the proxy starts first, and stops last.
    config.beta.linkerd.io/proxy-enable-native-sidecar: "true"
    {{- end }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "kmsgate.fullname" . }}
  automountServiceAccountToken: {{ .Values.serviceAccount.automountToken }}
  enableServiceLinks: false
  # More than shutdown.lag and shutdown.drain together.
  terminationGracePeriodSeconds: {{ $grace }}
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  securityContext:
    runAsNonRoot: true
    {{- range $name, $id := .Values.podSecurityContext }}
    {{- if not (kindIs "invalid" $id) }}
    {{ $name }}: {{ int64 $id }}
    {{- end }}
    {{- end }}
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile:
      type: RuntimeDefault
  containers:
    - name: kmsgate
      image: {{ include "kmsgate.image" . }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args:
        - serve
        - --config
        - /etc/kmsgate/config/kmsgate.toml
      ports:
        - name: grpc
          containerPort: 9090
          protocol: TCP
        - name: rest
          containerPort: 8080
          protocol: TCP
        - name: admin
          containerPort: 9100
          protocol: TCP
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities:
          drop:
            - ALL
      # The admin port is in plain text whatever the others are, so the kubelet can ask it.
      startupProbe:
        httpGet:
          path: /livez
          port: admin
        periodSeconds: 1
        timeoutSeconds: 1
        failureThreshold: 60
      # Whether the process lives, and nothing else: a restart mends no store.
      livenessProbe:
        httpGet:
          path: /livez
          port: admin
        periodSeconds: 10
        timeoutSeconds: 2
        failureThreshold: 3
      # Whether it can serve: the store answers, and it is not stopping. It waits a second for the store,
      # so the probe waits longer.
      readinessProbe:
        httpGet:
          path: /readyz
          port: admin
        periodSeconds: 2
        timeoutSeconds: 2
        failureThreshold: 2
      {{- with .Values.resources }}
      resources:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      volumeMounts:
        - name: config
          mountPath: /etc/kmsgate/config
          readOnly: true
        {{- range include "kmsgate.secrets" . | fromJsonArray }}
        - name: {{ .at }}
          mountPath: /etc/kmsgate/{{ .at }}
          readOnly: true
        {{- end }}
        {{- if eq .Values.store.kind "sqlite" }}
        - name: data
          mountPath: /var/lib/kmsgate
        {{- end }}
        {{- with .Values.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    - name: config
      configMap:
        name: {{ include "kmsgate.fullname" . }}-config
    {{- range include "kmsgate.secrets" . | fromJsonArray }}
    - name: {{ .at }}
      secret:
        secretName: {{ .name }}
        defaultMode: 0440
    {{- end }}
    {{- with .Values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- if eq .Values.store.kind "etcd" }}
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: topology.kubernetes.io/zone
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "kmsgate.selector" . | nindent 10 }}
      matchLabelKeys:
        - pod-template-hash
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      # On different nodes, but rather two on one than one that waits because another node is full.
      whenUnsatisfiable: ScheduleAnyway
      nodeTaintsPolicy: Honor
      labelSelector:
        matchLabels:
          {{- include "kmsgate.selector" . | nindent 10 }}
      matchLabelKeys:
        - pod-template-hash
  {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{- /* The containers' security: nothing that the restricted profile takes away is needed. */ -}}
{{- define "router.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "router.podSecurity" -}}
runAsNonRoot: true
seccompProfile: {type: RuntimeDefault}
{{- with .Values.podSecurityContext }}
{{- if .runAsUser }}
runAsUser: {{ int .runAsUser }}
{{- end }}
{{- if .runAsGroup }}
runAsGroup: {{ int .runAsGroup }}
{{- end }}
{{- if .fsGroup }}
fsGroup: {{ int .fsGroup }}
fsGroupChangePolicy: OnRootMismatch
{{- end }}
{{- end }}
{{- end }}

{{- /* The variables of the router's container: `ROUTER_…` for each setting. Secrets come as files or from a Secret. */ -}}
{{- define "router.env" -}}
{{- $v := .Values -}}
{{- if include "router.hasRedis" . }}
{{- if $v.redis.existingSecret }}
- name: REDIS_URL
  valueFrom:
    secretKeyRef: {name: {{ $v.redis.existingSecret }}, key: {{ $v.redis.existingSecretKey }}}
{{- else }}
- name: REDIS_URL
  value: {{ $v.redis.url | default (printf "redis://%s-redis:6379/0" (include "router.fullname" .)) }}
{{- end }}
{{- if $v.redis.cache }}
- name: ROUTER_CACHE
  value: "$(REDIS_URL)?max_mb={{ int $v.redis.nearMb }}"
{{- end }}
{{- if $v.redis.affinity }}
- name: ROUTER_AFFINITY
  value: $(REDIS_URL)
{{- end }}
{{- if not (include "router.hasJobsRedis" .) }}
- name: ROUTER_JOBS
  value: $(REDIS_URL)
{{- end }}
- name: ROUTER_FLEET
  value: {{ ternary "$(REDIS_URL)" "off" $v.redis.fleet | quote }}
{{- end }}
{{- if include "router.hasJobsRedis" . }}
- name: JOBS_REDIS_URL
  {{- if $v.jobsRedis.existingSecret }}
  valueFrom:
    secretKeyRef: {name: {{ $v.jobsRedis.existingSecret }}, key: {{ $v.jobsRedis.existingSecretKey }}}
  {{- else }}
  value: {{ $v.jobsRedis.url }}
  {{- end }}
- name: ROUTER_JOBS
  value: $(JOBS_REDIS_URL)
{{- end }}
{{- if and $v.otel.endpoint $v.otel.headersSecret }}
- name: OTEL_EXPORTER_OTLP_HEADERS
  valueFrom:
    secretKeyRef: {name: {{ $v.otel.headersSecret }}, key: {{ $v.otel.headersSecretKey }}}
{{- end }}
{{- with $v.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "router.probe" -}}
periodSeconds: {{ int .Values.probes.periodSeconds }}
timeoutSeconds: {{ int .Values.probes.timeoutSeconds }}
{{- end }}

{{- /* Files of secrets, each from its own Secret: a change of one that is not ours is seen at the next start. */ -}}
{{- define "router.secretSources" -}}
{{- $v := .Values -}}
- secret:
    {{- if $v.admin.existingSecret }}
    name: {{ $v.admin.existingSecret }}
    items: [{key: {{ $v.admin.existingSecretKey }}, path: admin-token}]
    {{- else }}
    name: {{ include "router.ownSecret" . }}
    items: [{key: admin-token, path: admin-token}]
    {{- end }}
{{- if $v.upstream.existingSecret }}
- secret:
    name: {{ $v.upstream.existingSecret }}
    items: [{key: {{ $v.upstream.existingSecretKey }}, path: upstream-api-key}]
{{- else if $v.upstream.apiKey }}
- secret:
    name: {{ include "router.ownSecret" . }}
    items: [{key: upstream-api-key, path: upstream-api-key}]
{{- end }}
{{- if $v.clientKeys.existingSecret }}
- secret:
    name: {{ $v.clientKeys.existingSecret }}
    items: [{key: {{ $v.clientKeys.existingSecretKey }}, path: keys.yaml}]
{{- else if $v.clientKeys.file }}
- secret:
    name: {{ include "router.ownSecret" . }}
    items: [{key: keys.yaml, path: keys.yaml}]
{{- end }}
{{- if $v.tenantSecret.existingSecret }}
- secret:
    name: {{ $v.tenantSecret.existingSecret }}
    items: [{key: {{ $v.tenantSecret.existingSecretKey }}, path: tenant-secret}]
{{- else if $v.tenantSecret.value }}
- secret:
    name: {{ include "router.ownSecret" . }}
    items: [{key: tenant-secret, path: tenant-secret}]
{{- end }}
{{- if $v.webhookSecret.existingSecret }}
- secret:
    name: {{ $v.webhookSecret.existingSecret }}
    items: [{key: {{ $v.webhookSecret.existingSecretKey }}, path: webhook-secret}]
{{- else if $v.webhookSecret.value }}
- secret:
    name: {{ include "router.ownSecret" . }}
    items: [{key: webhook-secret, path: webhook-secret}]
{{- end }}
{{- end }}

{{- define "router.podTemplate" -}}
{{- $v := .Values -}}
metadata:
  labels:
    {{- mergeOverwrite (include "router.labels" . | fromYaml) ($v.podLabels | default dict) | toYaml | nindent 4 }}
  annotations:
    kubectl.kubernetes.io/default-container: router
    {{- if $v.rollOnChange }}
    checksum/settings: {{ include "router.settings" . | sha256sum }}
    checksum/secrets: {{ include "router.secretData" . | sha256sum }}
    {{- end }}
    {{- with $v.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "router.serviceAccount" . }}
  automountServiceAccountToken: false
  # Variables such as ROUTER_PORT, which Kubernetes makes for a Service of that name, would be read as settings.
  enableServiceLinks: false
  # The wait of `preStop`, the drain, and what the router takes at most to end after it.
  terminationGracePeriodSeconds: {{ add $v.drain.preStopSeconds $v.drain.seconds 20 }}
  securityContext:
    {{- include "router.podSecurity" . | nindent 4 }}
  {{- with $v.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $v.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with $v.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  containers:
    - name: router
      image: {{ include "router.image" . }}
      imagePullPolicy: {{ $v.image.pullPolicy }}
      securityContext:
        {{- include "router.containerSecurity" . | nindent 8 }}
      ports:
        - {name: api, containerPort: 8080, protocol: TCP}
        - {name: admin, containerPort: 8081, protocol: TCP}
      # The last one wins: what others bring cannot take the listeners elsewhere.
      envFrom:
        {{- with $v.extraEnvFrom }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
        - configMapRef: {name: {{ include "router.fullname" . }}-settings}
      {{- with include "router.env" . | trim }}
      env:
        {{- . | nindent 8 }}
      {{- end }}
      # Whether the process answers at all: nothing outside it is asked.
      livenessProbe:
        httpGet: {path: /healthz, port: admin}
        failureThreshold: {{ int $v.probes.livenessFailures }}
        {{- include "router.probe" . | nindent 8 }}
      # Whether it can serve by itself: neither upstream nor Redis is asked.
      readinessProbe:
        httpGet: {path: /readyz, port: admin}
        failureThreshold: {{ int $v.probes.readinessFailures }}
        {{- include "router.probe" . | nindent 8 }}
      startupProbe:
        httpGet: {path: /healthz, port: admin}
        failureThreshold: {{ int $v.probes.startupFailures }}
        {{- include "router.probe" . | nindent 8 }}
      {{- if $v.drain.preStopSeconds }}
      # Time in which the endpoints forget this pod, before it hears SIGTERM and refuses newcomers.
      lifecycle:
        preStop:
          sleep: {seconds: {{ int $v.drain.preStopSeconds }}}
      {{- end }}
      resources:
        {{- toYaml $v.resources | nindent 8 }}
      volumeMounts:
        # A folder, never a subPath: Kubernetes brings an edit of the ConfigMap in, and it is live without a restart.
        - {name: policies, mountPath: /etc/router/policies, readOnly: true}
        - {name: secrets, mountPath: /run/secrets/router, readOnly: true}
        - {name: traces, mountPath: /var/lib/router}
        {{- with $v.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    {{- with $v.extraContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumes:
    - name: policies
      configMap: {name: {{ include "router.policies" . }}}
    - name: secrets
      projected:
        defaultMode: 0444
        sources:
          {{- include "router.secretSources" . | nindent 10 }}
    {{- if ne $v.traces.storage "volume" }}
    - name: traces
      emptyDir: {sizeLimit: {{ $v.traces.size }}}
    {{- end }}
    {{- with $v.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with $v.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $v.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $v.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if $v.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- toYaml $v.topologySpreadConstraints | nindent 4 }}
  {{- else if $v.spread }}
  topologySpreadConstraints:
    {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
    - maxSkew: 1
      topologyKey: {{ . }}
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "router.selector" $ | nindent 10 }}
    {{- end }}
  {{- end }}
{{- end }}

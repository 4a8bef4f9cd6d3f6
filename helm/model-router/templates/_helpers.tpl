{{- define "router.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end }}

{{- define "router.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains (include "router.name" .) .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "router.name" .) | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{- define "router.selector" -}}
app.kubernetes.io/name: {{ include "router.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: router
{{- end }}

{{- define "router.sharedLabels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: model-router
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "router.labels" -}}
{{ include "router.selector" . }}
{{ include "router.sharedLabels" . }}
{{- end }}

{{- /* Labels of an object that is not a part of the router's own pods: dict "root" $ "component" "redis". */ -}}
{{- define "router.partSelector" -}}
app.kubernetes.io/name: {{ include "router.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "router.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- define "router.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (include "router.fullname" .) }}
{{- else -}}
{{ .Values.serviceAccount.name | default "default" }}
{{- end -}}
{{- end }}

{{- define "router.policies" -}}
{{ .Values.policies.existingConfigMap | default (printf "%s-policies" (include "router.fullname" .)) }}
{{- end }}

{{- define "router.ownSecret" -}}
{{ include "router.fullname" . }}-secrets
{{- end }}

{{- /* Whether several processes share a Redis, and the form of its address. */ -}}
{{- define "router.hasRedis" -}}
{{- if or .Values.redis.url .Values.redis.existingSecret .Values.bundledRedis.enabled -}}yes{{- end -}}
{{- end }}

{{- define "router.hasJobsRedis" -}}
{{- if or .Values.jobsRedis.url .Values.jobsRedis.existingSecret -}}yes{{- end -}}
{{- end }}

{{- define "router.hasUpstreamKey" -}}
{{- if or .Values.upstream.apiKey .Values.upstream.existingSecret -}}yes{{- end -}}
{{- end }}

{{- define "router.isMany" -}}
{{- if or .Values.autoscaling.enabled (gt (int .Values.replicaCount) 1) -}}yes{{- end -}}
{{- end }}

{{- /* What no single value shows: the values seen together. Each message names the value to change. */ -}}
{{- define "router.check" -}}
{{- $v := .Values -}}
{{- if not (or $v.admin.token $v.admin.existingSecret) -}}
{{- fail "admin.token or admin.existingSecret is required: the admin listener is not on loopback here, and has no default token" -}}
{{- end -}}
{{- $keys := or $v.clientKeys.file $v.clientKeys.existingSecret -}}
{{- if and (include "router.hasUpstreamKey" .) (not $keys) -}}
{{- fail "upstream.apiKey (or upstream.existingSecret) needs clientKeys.file or clientKeys.existingSecret: anybody could spend it" -}}
{{- end -}}
{{- if and $keys (not (include "router.hasUpstreamKey" .)) -}}
{{- fail "clientKeys needs upstream.apiKey or upstream.existingSecret: there is no key to send upstream" -}}
{{- end -}}
{{- if and $v.redis.url $v.redis.existingSecret -}}
{{- fail "redis.url and redis.existingSecret: give one of them" -}}
{{- end -}}
{{- if and $v.bundledRedis.enabled (or $v.redis.url $v.redis.existingSecret) -}}
{{- fail "bundledRedis.enabled: redis.url or redis.existingSecret names another Redis; give one of them" -}}
{{- end -}}
{{- if and $v.jobsRedis.url $v.jobsRedis.existingSecret -}}
{{- fail "jobsRedis.url and jobsRedis.existingSecret: give one of them" -}}
{{- end -}}
{{- if and (or (include "router.hasRedis" .) (include "router.hasJobsRedis" .)) (not (or $v.tenantSecret.value $v.tenantSecret.existingSecret)) -}}
{{- fail "tenantSecret.value or tenantSecret.existingSecret is required with Redis: it keys what pods share, so that nobody else can forge an answer" -}}
{{- end -}}
{{- if and ($v.settings | default dict).webhook_hosts (not (or $v.webhookSecret.value $v.webhookSecret.existingSecret)) -}}
{{- fail "webhookSecret.value or webhookSecret.existingSecret is required with settings.webhook_hosts" -}}
{{- end -}}
{{- if and $v.ingress.enabled (not $v.ingress.hosts) -}}
{{- fail "ingress.hosts: name at least one host" -}}
{{- end -}}
{{- if and $v.httpRoute.enabled (not $v.httpRoute.parentRefs) -}}
{{- fail "httpRoute.parentRefs: name at least one gateway" -}}
{{- end -}}
{{- if and $v.autoscaling.enabled (lt (int $v.autoscaling.maxReplicas) (int $v.autoscaling.minReplicas)) -}}
{{- fail "autoscaling.maxReplicas is less than autoscaling.minReplicas" -}}
{{- end -}}
{{- if and $v.autoscaling.enabled (not (or $v.autoscaling.targetCPU $v.autoscaling.targetStreams)) -}}
{{- fail "autoscaling.targetCPU and autoscaling.targetStreams are both 0: there is nothing to scale by" -}}
{{- end -}}
{{- if and $v.metrics.serviceMonitor.enabled (not $v.admin.service.enabled) -}}
{{- fail "metrics.serviceMonitor.enabled needs admin.service.enabled" -}}
{{- end -}}
{{- if $v.networkPolicy.enabled -}}
{{- include "router.checkWays" . -}}
{{- if and $v.metrics.serviceMonitor.enabled (not $v.networkPolicy.adminFrom) -}}
{{- fail "networkPolicy.adminFrom: name where Prometheus is; empty lets in this namespace alone, and metrics.serviceMonitor is on" -}}
{{- end -}}
{{- end -}}
{{- if and $v.redis.jobs (not (include "router.hasRedis" .)) -}}
{{- fail "redis.jobs needs redis.url or redis.existingSecret: there is no Redis that deferred requests could be in" -}}
{{- end -}}
{{- include "router.checkSize" . -}}
{{- include "router.checkNames" . -}}
{{- end }}

{{- /* The store of traces, and what lies beside it, in the volume. The schema takes whole Mi, Gi and Ti. */ -}}
{{- define "router.checkSize" -}}
{{- $v := .Values -}}
{{- $size := toString $v.traces.size -}}
{{- $bytes := get (dict "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776) (regexFind "[A-Z]i$" $size) | int64 -}}
{{- $megabytes := div (mul (regexFind "^[0-9]+" $size | int64) $bytes) 1000000 -}}
{{- $most := default 2048 ($v.settings | default dict).traces_max_mb | int64 -}}
{{- if and (ne $v.traces.storage "off") (lt $megabytes (add $most 256)) -}}
{{- fail (printf "traces.size is %s, and settings.traces_max_mb %d: the volume needs 256 MB more than the store may take" $size $most) -}}
{{- end -}}
{{- end }}

{{- /* Labels and variables that are the chart's own; all at once. */ -}}
{{- define "router.checkNames" -}}
{{- $v := .Values -}}
{{- $wrong := list -}}
{{- range $value, $given := dict "podLabels" ($v.podLabels | default dict) "commonLabels" ($v.commonLabels | default dict) -}}
{{- range $label := list "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/component" "app.kubernetes.io/version" "app.kubernetes.io/managed-by" "app.kubernetes.io/part-of" "helm.sh/chart" -}}
{{- if hasKey $given $label -}}
{{- $wrong = append $wrong (printf "%s: %s is the chart's own, by such labels its objects are found; use nameOverride, or another release name" $value $label) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $instead := dict
  "HOST" "service (the Service and the probes lead to 0.0.0.0)" "PORT" "service.port"
  "ADMIN_HOST" "admin.service (the Service and the probes lead to 0.0.0.0)" "ADMIN_PORT" "admin.service"
  "ADMIN_TOKEN" "admin.existingSecret" "UPSTREAM_URL" "upstream.url" "UPSTREAM_PRIVATE" "upstream.private"
  "UPSTREAM_API_KEY" "upstream.existingSecret" "KEYS" "clientKeys.existingSecret"
  "TENANT_SECRET" "tenantSecret.existingSecret" "WEBHOOK_SECRET" "webhookSecret.existingSecret"
  "POLICIES" "policies.existingConfigMap" "POLICY_HISTORY" "traces.storage (the history is in that volume)"
  "CACHE" "redis.cache" "AFFINITY" "redis.affinity" "JOBS" "jobsRedis" "DEFERRED" "jobsRedis" "FLEET" "redis.fleet"
  "TRACES" "traces.storage" "DRAIN_TIMEOUT" "drain.seconds" "DRAIN_DELAY" "drain.preStopSeconds" -}}
{{- range $v.extraEnv -}}
{{- $name := toString .name -}}
{{- $setting := trimPrefix "ROUTER_" $name | trimSuffix "_FILE" -}}
{{- /* What is not in Redis is kept in the process, and how much of it is nowhere else to be said. */ -}}
{{- $isShared := and (include "router.hasRedis" $) (ternary $v.redis.cache $v.redis.affinity (eq $setting "CACHE")) -}}
{{- $isFree := and (has $setting (list "CACHE" "AFFINITY")) (not $isShared) (regexMatch "^(off|memory://.*)$" (toString .value)) -}}
{{- if and (hasPrefix "ROUTER_" $name) (hasKey $instead $setting) (not $isFree) -}}
{{- $wrong = append $wrong (printf "extraEnv: %s is the chart's own; use %s" $name (get $instead $setting)) -}}
{{- end -}}
{{- if or (and (eq $name "REDIS_URL") (include "router.hasRedis" $)) (and (eq $name "JOBS_REDIS_URL") (include "router.hasJobsRedis" $)) -}}
{{- $wrong = append $wrong (printf "extraEnv: %s is the chart's own; use %s" $name (ternary "redis.existingSecret" "jobsRedis.existingSecret" (eq $name "REDIS_URL"))) -}}
{{- end -}}
{{- end -}}
{{- with $wrong -}}{{- fail (join "\n" .) -}}{{- end -}}
{{- end }}

{{- /* A NetworkPolicy that would cut what the values name, and what of that Helm cannot see. */ -}}
{{- define "router.checkWays" -}}
{{- $v := .Values -}}
{{- $unread := list -}}
{{- if $v.redis.existingSecret -}}{{- $unread = append $unread "redis.existingSecret" -}}{{- end -}}
{{- if $v.jobsRedis.existingSecret -}}{{- $unread = append $unread "jobsRedis.existingSecret" -}}{{- end -}}
{{- if and $unread (not $v.networkPolicy.redisPorts) -}}
{{- fail (printf "networkPolicy.redisPorts: name all ports of the URL in %s, which Helm cannot read, such as [6379]; with Sentinel those of sentinels and servers" (join ", and all of that in " $unread)) -}}
{{- end -}}
{{- $host := regexReplaceAll "[/?#].*$" (regexReplaceAll "^[a-z]+://" $v.upstream.url "") "" -}}
{{- $host = regexReplaceAll ":[0-9]+$" $host "" | trimPrefix "[" | trimSuffix "]" | trimSuffix "." | lower -}}
{{- $isHere := or (eq $host "localhost") (eq $host "::1") (hasPrefix "127." $host) -}}
{{- $isLocal := or (not (regexMatch "[.:]" $host)) (regexMatch "\\.(localhost|local|internal|intranet|lan|home|corp|private|test|home\\.arpa|svc|alt)$" $host) -}}
{{- $isPrivate := regexMatch "^((0|10|169\\.254|192\\.168|172\\.(1[6-9]|2[0-9]|3[01])|100\\.(6[4-9]|[7-9][0-9]|1[01][0-9]|12[0-7]))\\.[0-9.]+$|::|f[cd][0-9a-f]{2}:|fe[89ab][0-9a-f]:)" $host -}}
{{- if and (not $isHere) (not $v.networkPolicy.upstreamTo) (or $isLocal $isPrivate (eq $v.upstream.private "allow")) -}}
{{- fail (printf "networkPolicy.upstreamTo: name where %s is; empty leads to public addresses alone%s" $host (ternary ", and upstream.private is allow" "" (eq $v.upstream.private "allow"))) -}}
{{- end -}}
{{- end }}

{{- /* Whether requests that can wait are taken: only into what outlives a pod, and what all pods share. */ -}}
{{- define "router.defers" -}}
{{- $v := .Values -}}
{{- if or (include "router.hasJobsRedis" .) (and (include "router.hasRedis" .) $v.redis.jobs) -}}yes
{{- else if and (not (include "router.hasRedis" .)) (eq $v.traces.storage "volume") (not (include "router.isMany" .)) -}}yes
{{- end -}}
{{- end }}

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
{{- if and $v.settings.webhook_hosts (not (or $v.webhookSecret.value $v.webhookSecret.existingSecret)) -}}
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
{{- include "router.checkPorts" . -}}
{{- if and $v.metrics.serviceMonitor.enabled (not $v.networkPolicy.adminFrom) -}}
{{- fail "networkPolicy.adminFrom: name where Prometheus is; empty lets in this namespace alone, and metrics.serviceMonitor is on" -}}
{{- end -}}
{{- end -}}
{{- $size := toString $v.traces.size -}}
{{- $megabytes := 0 -}}
{{- if hasSuffix "Gi" $size -}}{{- $megabytes = mul (trimSuffix "Gi" $size | int) 1073 -}}{{- end -}}
{{- if hasSuffix "Mi" $size -}}{{- $megabytes = trimSuffix "Mi" $size | int -}}{{- end -}}
{{- $most := default 2048 $v.settings.traces_max_mb | int -}}
{{- if and $megabytes (lt (int $megabytes) (add $most 256 | int)) -}}
{{- fail (printf "traces.size is %s, and settings.traces_max_mb %d: the volume needs 256 MB more than the store may take" $size $most) -}}
{{- end -}}
{{- end }}

{{/* A NetworkPolicy that would cut what the values name. */}}
{{- define "router.checkPorts" -}}
{{- $v := .Values -}}
{{- $ports := list -}}
{{- range $v.networkPolicy.redisPorts -}}{{- $ports = append $ports (toString (int .)) -}}{{- end -}}
{{- range $name, $url := dict "redis.url" $v.redis.url "jobsRedis.url" $v.jobsRedis.url -}}
{{- $hosts := regexReplaceAll "[/?].*$" (regexReplaceAll "^[a-z+]+://([^@/]*@)?" (toString $url) "") "" -}}
{{- range regexFindAll ":[0-9]+" $hosts -1 -}}
{{- if not (has (trimPrefix ":" .) $ports) -}}
{{- fail (printf "networkPolicy.redisPorts has no %s, the port of %s" (trimPrefix ":" .) $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $name, $pair := dict "upstreamPort" (list $v.upstream.url $v.networkPolicy.upstreamPort) "otlpPort" (list $v.otel.endpoint $v.networkPolicy.otlpPort) -}}
{{- $url := toString (index $pair 0) -}}
{{- if $url -}}
{{- $host := regexReplaceAll "[/?].*$" (regexReplaceAll "^[a-z]+://" $url "") "" -}}
{{- $port := ternary (trimPrefix ":" (regexFind ":[0-9]+$" $host)) (ternary "443" "80" (hasPrefix "https:" $url)) (regexMatch ":[0-9]+$" $host) -}}
{{- if ne $port (toString (int (index $pair 1))) -}}
{{- fail (printf "networkPolicy.%s is %d, and %s is reached at %s" $name (int (index $pair 1)) $host $port) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}

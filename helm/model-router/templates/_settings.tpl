{{- /* Settings that are no secret, as variables. Unknown names stop the router; the schema refuses them before that. */ -}}
{{- define "router.settings" -}}
{{- $v := .Values -}}
ROUTER_HOST: "0.0.0.0"
ROUTER_PORT: "8080"
ROUTER_ADMIN_HOST: "0.0.0.0"
ROUTER_ADMIN_PORT: "8081"
ROUTER_ADMIN_TOKEN_FILE: /run/secrets/router/admin-token
ROUTER_POLICIES: /etc/router/policies
ROUTER_POLICY_HISTORY: /var/lib/router/history
ROUTER_UPSTREAM_URL: {{ $v.upstream.url | quote }}
ROUTER_UPSTREAM_PRIVATE: {{ $v.upstream.private | quote }}
ROUTER_TRACES: {{ ternary "off" "sqlite:////var/lib/router/router.db" (eq $v.traces.storage "off") | quote }}
ROUTER_DEFERRED: {{ ternary "on" "off" (eq (include "router.defers" .) "yes") | quote }}
ROUTER_DRAIN_TIMEOUT: {{ printf "%ds" (int $v.drain.seconds) | quote }}
{{- if include "router.hasUpstreamKey" . }}
ROUTER_UPSTREAM_API_KEY_FILE: /run/secrets/router/upstream-api-key
ROUTER_KEYS: /run/secrets/router/keys.yaml
{{- end }}
{{- if or $v.tenantSecret.value $v.tenantSecret.existingSecret }}
ROUTER_TENANT_SECRET_FILE: /run/secrets/router/tenant-secret
{{- end }}
{{- if or $v.webhookSecret.value $v.webhookSecret.existingSecret }}
ROUTER_WEBHOOK_SECRET_FILE: /run/secrets/router/webhook-secret
{{- end }}
{{- range $name, $value := $v.settings }}
{{- /* A number comes as a float: written whole, never as 1e+06. */}}
ROUTER_{{ upper $name }}: {{ ternary (printf "%.0f" (float64 $value)) $value (or (kindIs "float64" $value) (kindIs "int64" $value) (kindIs "int" $value)) | toString | quote }}
{{- end }}
{{- with $v.otel.endpoint }}
OTEL_EXPORTER_OTLP_ENDPOINT: {{ . | quote }}
OTEL_SERVICE_NAME: {{ include "router.fullname" $ | quote }}
{{- end }}
{{- if and $v.otel.endpoint $v.otel.resourceAttributes }}
OTEL_RESOURCE_ATTRIBUTES: {{ $v.otel.resourceAttributes | quote }}
{{- end }}
{{- end }}

{{- /* What the chart's own Secret holds; empty where every secret is in one of yours. */ -}}
{{- define "router.secretData" -}}
{{- $v := .Values -}}
{{- if and $v.admin.token (not $v.admin.existingSecret) }}
admin-token: {{ $v.admin.token | toJson }}
{{- end }}
{{- if and $v.upstream.apiKey (not $v.upstream.existingSecret) }}
upstream-api-key: {{ $v.upstream.apiKey | toJson }}
{{- end }}
{{- if and $v.clientKeys.file (not $v.clientKeys.existingSecret) }}
keys.yaml: {{ $v.clientKeys.file | toJson }}
{{- end }}
{{- if and $v.tenantSecret.value (not $v.tenantSecret.existingSecret) }}
tenant-secret: {{ $v.tenantSecret.value | toJson }}
{{- end }}
{{- if and $v.webhookSecret.value (not $v.webhookSecret.existingSecret) }}
webhook-secret: {{ $v.webhookSecret.value | toJson }}
{{- end }}
{{- end }}

{{/* Refuses values that pass the schema and cannot work. */}}
{{- define "evalmode.check" -}}
{{- include "evalmode.checkModels" . -}}
{{- include "evalmode.checkShutdown" .Values.shutdown -}}
{{- include "evalmode.checkTransport" .Values -}}
{{- include "evalmode.checkAutoscaling" .Values -}}
{{- end }}

{{- define "evalmode.checkModels" -}}
{{- $sources := compact (list .Values.models.claim.name .Values.models.artifact.reference .Values.models.store.uri) -}}
{{- if ne (len $sources) 1 -}}
{{- fail (printf "%d sources of models are set: set exactly one of models.claim.name, models.artifact.reference and models.store.uri" (len $sources)) -}}
{{- end -}}
{{- end }}

{{- define "evalmode.checkShutdown" -}}
{{- $needed := add .lameDuckSeconds .drainSeconds 1 -}}
{{- if le (int64 .terminationGracePeriodSeconds) $needed -}}
{{- fail (printf "shutdown.terminationGracePeriodSeconds is %d, but the server takes up to %d s to end (lameDuckSeconds + drainSeconds + 1), and would be killed with requests in flight: set at least %d" (int64 .terminationGracePeriodSeconds) $needed (add $needed 1)) -}}
{{- end -}}
{{- end }}

{{- define "evalmode.checkTransport" -}}
{{- if and .tls.clientCaSecret (not .tls.secret) -}}
{{- fail "tls.clientCaSecret needs tls.secret: a server without a certificate cannot check those of clients" -}}
{{- end -}}
{{- if eq .transport "native" -}}
{{- if .tls.secret -}}
{{- fail "transport native cannot serve TLS: set transport to grpcio, or end TLS in a proxy and leave tls.secret empty" -}}
{{- end -}}
{{- if not (index .options "allow-unbounded-messages") -}}
{{- fail "transport native decompresses messages without a limit: set transport to grpcio, or admit trusted clients only (networkPolicy.clients) and set options.allow-unbounded-messages to true" -}}
{{- end -}}
{{- end -}}
{{- if and (eq .provider "cuda") (not (index (.resources.limits | default dict) "nvidia.com/gpu")) -}}
{{- fail "provider cuda needs a GPU: set resources.limits to include nvidia.com/gpu, or set provider to cpu" -}}
{{- end -}}
{{- end }}

{{- define "evalmode.checkAutoscaling" -}}
{{- if .autoscaling.enabled -}}
{{- with .autoscaling -}}
{{- if gt (int64 .minReplicas) (int64 .maxReplicas) -}}
{{- fail (printf "autoscaling.minReplicas is %d, which is more than maxReplicas, %d" (int64 .minReplicas) (int64 .maxReplicas)) -}}
{{- end -}}
{{- if not (or .cpuPercent .requestsInFlight) -}}
{{- fail "autoscaling has no target: set autoscaling.cpuPercent or autoscaling.requestsInFlight" -}}
{{- end -}}
{{- end -}}
{{- if and .autoscaling.cpuPercent (not (dig "requests" "cpu" "" .resources)) -}}
{{- fail "autoscaling.cpuPercent is a share of resources.requests.cpu, which is not set" -}}
{{- end -}}
{{- if and .autoscaling.requestsInFlight (not .serviceMonitor.enabled) -}}
{{- fail "autoscaling.requestsInFlight is read from Prometheus: set serviceMonitor.enabled to true, or requestsInFlight to 0" -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* The options of the server, as environment variables. */}}
{{- define "evalmode.environment" -}}
{{- $set := dict
  "host" "0.0.0.0"
  "port" 8001
  "metrics-port" 8002
  "repository" "/models"
  "transport" .Values.transport
  "provider" .Values.provider
  "lame-duck" .Values.shutdown.lameDuckSeconds
  "grace" .Values.shutdown.drainSeconds
-}}
{{- with .Values.tls -}}
{{- if .secret -}}
{{- $_ := set $set "tls-cert" "/etc/evalmode/tls/tls.crt" -}}
{{- $_ := set $set "tls-key" "/etc/evalmode/tls/tls.key" -}}
{{- end -}}
{{- if .clientCaSecret -}}
{{- $_ := set $set "tls-client-ca" "/etc/evalmode/client-ca/ca.crt" -}}
{{- end -}}
{{- end -}}
{{- if .Values.tokens.secret -}}
{{- $_ := set $set "tokens" "/etc/evalmode/tokens/tokens" -}}
{{- end -}}
{{- range $name, $value := merge $set .Values.options }}
- name: EVALMODE_SERVE_{{ $name | replace "-" "_" | upper }}
  value: {{ include "evalmode.optionValue" (dict "name" $name "value" $value) | quote }}
{{- end }}
{{- end }}

{{/* A flag is 1 or 0; a list is joined as the server splits it; numbers are written without an exponent. */}}
{{- define "evalmode.optionValue" -}}
{{- if kindIs "bool" .value -}}
{{ ternary 1 0 .value }}
{{- else if kindIs "slice" .value -}}
{{ join (ternary ":" " " (eq .name "follow-links")) .value }}
{{- else if kindIs "string" .value -}}
{{ .value }}
{{- else -}}
{{ toJson .value }}
{{- end -}}
{{- end }}

{{- define "evalmode.mounts" -}}
- name: models
  mountPath: /models
  readOnly: true
  {{- with .Values.models.claim.subPath }}
  subPath: {{ . | quote }}
  {{- end }}
{{- if .Values.tls.secret }}
- name: tls
  mountPath: /etc/evalmode/tls
  readOnly: true
# With TLS, the server has a socket of its own in /tmp, for /livez.
- name: tmp
  mountPath: /tmp
{{- end }}
{{- if .Values.tls.clientCaSecret }}
- name: client-ca
  mountPath: /etc/evalmode/client-ca
  readOnly: true
{{- end }}
{{- if .Values.tokens.secret }}
- name: tokens
  mountPath: /etc/evalmode/tokens
  readOnly: true
{{- end }}
{{- end }}

{{- define "evalmode.volumes" -}}
{{- with .Values.models -}}
- name: models
  {{- if .claim.name }}
  persistentVolumeClaim:
    claimName: {{ .claim.name | quote }}
  {{- else }}
  emptyDir:
    sizeLimit: {{ .downloadSize }}
  {{- end }}
{{- if .artifact.registrySecret }}
- name: registry
  secret:
    secretName: {{ .artifact.registrySecret }}
    defaultMode: 0440
    items: [{key: .dockerconfigjson, path: config.json}]
{{- end }}
{{- end }}
{{- $downloads := not .Values.models.claim.name }}
{{- if or .Values.tls.secret $downloads }}
- name: tmp
  emptyDir:
    sizeLimit: {{ ternary .Values.models.downloadSize "16Mi" $downloads }}
{{- end }}
{{- with .Values.tls }}
{{- if .secret }}
- name: tls
  secret:
    secretName: {{ .secret }}
    defaultMode: 0440
{{- end }}
{{- if .clientCaSecret }}
- name: client-ca
  secret:
    secretName: {{ .clientCaSecret }}
    defaultMode: 0440
    items: [{key: ca.crt, path: ca.crt}]
{{- end }}
{{- end }}
{{- with .Values.tokens }}
{{- if .secret }}
- name: tokens
  secret:
    secretName: {{ .secret }}
    defaultMode: 0440
    items: [{key: {{ .key | quote }}, path: tokens}]
{{- end }}
{{- end }}
{{- end }}

{{/* The container that downloads the models, if they are not on a volume. */}}
{{- define "evalmode.download" -}}
{{- if .Values.models.artifact.reference -}}
{{- with .Values.models.artifact }}
- name: fetch-models
  image: {{ .image }}
  # oras compares the manifest with the digest of the reference, and each file with the digest in the manifest. It unpacks
  # folders in /tmp.
  args:
    - pull
    - --output=/models
    {{- if .registrySecret }}
    - --registry-config=/etc/oras/config.json
    {{- end }}
    - {{ .reference | quote }}
  volumeMounts:
    - {name: models, mountPath: /models}
    - {name: tmp, mountPath: /tmp}
    {{- if .registrySecret }}
    - {name: registry, mountPath: /etc/oras, readOnly: true}
    {{- end }}
{{- end }}
{{- else if .Values.models.store.uri -}}
{{- with .Values.models.store }}
- name: fetch-models
  image: {{ .image }}
  # The slash at the end keeps folder/1 from downloading folder/10, too: an object store has no folders, only prefixes.
  args:
    - {{ printf "%s/" (trimSuffix "/" .uri) | quote }}
    - /models
  env:
    - {name: HOME, value: /tmp}
  {{- with .credentialsSecret }}
  envFrom:
    - secretRef: {name: {{ . }}}
  {{- end }}
  volumeMounts:
    - {name: models, mountPath: /models}
    - {name: tmp, mountPath: /tmp}
{{- end }}
{{- end }}
{{- if or .Values.models.artifact.reference .Values.models.store.uri }}
  resources:
    requests: {cpu: 100m, memory: 256Mi}
    limits: {cpu: "1", memory: 1Gi}
  securityContext:
    {{- include "evalmode.containerSecurity" . | nindent 4 }}
{{- end }}
{{- end }}

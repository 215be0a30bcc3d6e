{{- define "labels" -}}
app.kubernetes.io/name: credential-broker
app.kubernetes.io/instance: {{ .Values.nameOverride }}
{{- end }}

{{- define "chartLabels" -}}
{{ include "labels" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "image" -}}
{{ .Values.image.repository }}{{ if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:{{ .Values.image.tag | default (.Chart.AppVersion | replace "+" "-") }}{{ end }}
{{- end }}

{{- /* The ConfigMap that is mounted; empty without one. */ -}}
{{- define "configMap" -}}
{{- if and .Values.config .Values.existingConfigMap }}{{ fail "config and existingConfigMap exclude each other" }}{{ end -}}
{{- if .Values.existingConfigMap }}{{ .Values.existingConfigMap }}{{ else if .Values.config }}{{ .Values.nameOverride }}{{ end }}
{{- end }}

{{- /* Whether a path is below host.dir, which is mounted already. */ -}}
{{- define "inside" -}}
{{- if or (eq .path .dir) (hasPrefix (printf "%s/" .dir) .path) }}yes{{ end }}
{{- end }}

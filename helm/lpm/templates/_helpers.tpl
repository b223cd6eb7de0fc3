{{- define "lpm.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 48 | trimSuffix "-" -}}
{{- end -}}

{{/* At most 48 characters: KServe appends "-predictor" and a hash and must stay within 63. */}}
{{- define "lpm.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 48 | trimSuffix "-" -}}
{{- else if contains (include "lpm.name" .) .Release.Name -}}
{{- .Release.Name | trunc 48 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "lpm.name" .) | trunc 48 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "lpm.selectorLabels" -}}
app.kubernetes.io/name: {{ include "lpm.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "lpm.labels" -}}
{{ include "lpm.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The server's pods, in both modes. The test pod has another component and is not selected. */}}
{{- define "lpm.podSelector" -}}
{{ include "lpm.selectorLabels" . }}
app.kubernetes.io/component: server
{{- end -}}

{{- define "lpm.podLabels" -}}
{{ include "lpm.podSelector" . }}
{{- with .Values.podLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "lpm.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "lpm.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "lpm.image" -}}
{{- $name := .Values.image.repository -}}
{{- if .Values.image.registry -}}{{- $name = printf "%s/%s" .Values.image.registry $name -}}{{- end -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" $name .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "lpm.storageInitializerImage" -}}
{{- with .Values.storageInitializer -}}
{{- if .digest -}}{{- printf "%s@%s" .repository .digest -}}{{- else -}}{{- printf "%s:%s" .repository .tag -}}{{- end -}}
{{- end -}}
{{- end -}}

{{- define "lpm.annotations" -}}
lpm.platform/storage-uri: {{ .Values.model.storageUri | quote }}
{{- with .Values.model.digest }}
lpm.platform/model-digest: {{ . | quote }}
{{- end }}
{{- range $key, $value := .Values.model.lineage }}
lpm.platform/{{ $key }}: {{ $value | quote }}
{{- end }}
{{- end -}}

{{- define "lpm.podAnnotations" -}}
checksum/config: {{ toJson .Values.serving.env | sha256sum }}
{{- with .Values.podAnnotations }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Where the endpoint may answer; KServe's own Service may be headless, then only the container's port works. */}}
{{- define "lpm.endpoints" -}}
{{- if eq .Values.serving.mode "kserve" -}}
{{- $host := printf "%s-predictor.%s.svc" (include "lpm.fullname" .) .Release.Namespace -}}
{{- printf "http://%s:80 http://%s:8080" $host $host -}}
{{- else -}}
{{- printf "http://%s.%s.svc:%d" (include "lpm.fullname" .) .Release.Namespace (int .Values.service.port) -}}
{{- end -}}
{{- end -}}

{{- define "lpm.resources" -}}
{{- $resources := deepCopy .Values.resources -}}
{{- if gt (int .Values.gpu.count) 0 -}}
{{- $limits := default (dict) $resources.limits -}}
{{- $_ := set $limits .Values.gpu.resourceName (int .Values.gpu.count) -}}
{{- $_ := set $resources "limits" $limits -}}
{{- end -}}
{{ toYaml $resources }}
{{- end -}}

{{- define "lpm.checks" -}}
{{- if lt (int .Values.serving.maxReplicas) (int .Values.serving.minReplicas) -}}
{{- fail (printf "serving.maxReplicas (%d) must be at least serving.minReplicas (%d)" (int .Values.serving.maxReplicas) (int .Values.serving.minReplicas)) -}}
{{- end -}}
{{- if and (gt (int .Values.serving.maxReplicas) 1) (not .Values.auth.existingSecret) -}}
{{- fail "auth.existingSecret is empty: with several replicas name a Secret with the session token, or each makes up its own" -}}
{{- end -}}
{{- end -}}

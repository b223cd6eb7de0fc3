{{/* The server's container, the same in both modes. Call it with the root context and `name`. */}}
{{- define "lpm.container" -}}
{{- $root := .root -}}
name: {{ .name }}
image: {{ include "lpm.image" $root | quote }}
imagePullPolicy: {{ $root.Values.image.pullPolicy }}
command: ["python", "-m", "serving.runtime"]
args:
  - --model-dir
  - /mnt/models
  - --drain-s
  - {{ sub (int $root.Values.serving.terminationGracePeriodSeconds) 30 | quote }}
  {{- if gt (int $root.Values.serving.maxSessions) 1 }}
  - --max-sessions
  - {{ $root.Values.serving.maxSessions | quote }}
  {{- end }}
  {{- range $root.Values.serving.allowedOrigins }}
  - --allow-origin
  - {{ . | quote }}
  {{- end }}
  {{- range list "compile" "float8" }}
  {{- if index $root.Values.serving . }}
  - --{{ . }}
  {{- end }}
  {{- end }}
  {{- range $root.Values.serving.extraArgs }}
  - {{ . | quote }}
  {{- end }}
env:
  {{- if eq $root.Values.serving.mode "kserve" }}
  # KServe downloads this to /mnt/models before the start and replaces the value with /mnt/models.
  - {name: STORAGE_URI, value: {{ $root.Values.model.storageUri | quote }}}
  - {name: PROTOCOL, value: v2}
  {{- end }}
  - {name: HOME, value: /tmp}
  {{- include "lpm.token" $root | nindent 2 }}
envFrom:
  - configMapRef: {name: {{ include "lpm.fullname" $root }}}
  {{- with $root.Values.serving.existingSecret }}
  - secretRef: {name: {{ . }}}
  {{- end }}
ports:
  - {name: http1, containerPort: 8080, protocol: TCP}
resources:
  {{- include "lpm.resources" $root | nindent 2 }}
startupProbe:
  httpGet: {path: /v2/health/ready, port: 8080}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: {{ max 1 (div (int $root.Values.probes.startupSeconds) 5) }}
readinessProbe:
  httpGet: {path: /v2/health/ready, port: 8080}
  periodSeconds: {{ $root.Values.probes.readinessPeriodSeconds }}
  timeoutSeconds: 5
  failureThreshold: 2
livenessProbe:
  httpGet: {path: /v2/health/live, port: 8080}
  periodSeconds: {{ $root.Values.probes.livenessPeriodSeconds }}
  timeoutSeconds: 5
  failureThreshold: 6
lifecycle:
  # Routes drop the pod before the server starts draining.
  preStop: {exec: {command: ["sleep", "5"]}}
securityContext:
  {{- toYaml $root.Values.securityContext | nindent 2 }}
volumeMounts:
  - {name: tmp, mountPath: /tmp}
  {{- if $root.Values.sharedMemory }}
  - {name: shm, mountPath: /dev/shm}
  {{- end }}
  {{- if eq $root.Values.serving.mode "deployment" }}
  - name: model
    mountPath: /mnt/models
    readOnly: true
    {{- with include "lpm.claimPath" $root }}
    subPath: {{ . }}
    {{- end }}
  {{- end }}
{{- end -}}

{{/* The session token of the server and of the test pod. */}}
{{- define "lpm.token" -}}
{{- with .Values.auth.existingSecret -}}
- name: LPM_TOKEN
  valueFrom: {secretKeyRef: {name: {{ . }}, key: {{ $.Values.auth.key }}}}
{{- end -}}
{{- end -}}

{{/* Pod fields other than the containers, the same in both modes. */}}
{{- define "lpm.podFields" -}}
serviceAccountName: {{ include "lpm.serviceAccountName" . }}
automountServiceAccountToken: false
terminationGracePeriodSeconds: {{ .Values.serving.terminationGracePeriodSeconds }}
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .Values.gpu.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- toYaml . | nindent 2 }}
{{- end }}
volumes:
  - name: tmp
    emptyDir: {sizeLimit: {{ .Values.tmpSizeLimit }}}
  {{- with .Values.sharedMemory }}
  - name: shm
    emptyDir: {medium: Memory, sizeLimit: {{ . }}}
  {{- end }}
  {{- if eq .Values.serving.mode "deployment" }}
  - name: model
    {{- if hasPrefix "pvc://" .Values.model.storageUri }}
    persistentVolumeClaim:
      claimName: {{ include "lpm.claimName" . }}
      readOnly: true
    {{- else }}
    emptyDir: {}
    {{- end }}
  {{- end }}
{{- end -}}

{{/* pvc://CLAIM/some/folder: the claim, and the folder in it. */}}
{{- define "lpm.claimName" -}}
{{- (splitn "/" 2 (trimPrefix "pvc://" .Values.model.storageUri))._0 -}}
{{- end -}}
{{- define "lpm.claimPath" -}}
{{- if hasPrefix "pvc://" .Values.model.storageUri -}}
{{- default "" (splitn "/" 2 (trimPrefix "pvc://" .Values.model.storageUri))._1 -}}
{{- end -}}
{{- end -}}

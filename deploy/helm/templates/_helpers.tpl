{{- define "steadyhand.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* With a part's name behind it, and the number of a worker, it must fit into the 63 characters of a label. */}}
{{- define "steadyhand.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "steadyhand.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "steadyhand.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "steadyhand.selector" -}}
app.kubernetes.io/name: {{ include "steadyhand.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .part }}
{{- end -}}

{{- define "steadyhand.labels" -}}
{{ include "steadyhand.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "steadyhand.image" -}}
{{ printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) | quote }}
{{- end -}}

{{/* The settings are read at the start: a change of them is a change of the pods. */}}
{{- define "steadyhand.podMetadata" -}}
labels:
  {{- include "steadyhand.labels" . | nindent 2 }}
annotations:
  checksum/config: {{ .root.Values.config | sha256sum }}
  {{- with .annotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* The same for all pods: no root, no rights, no token of the cluster. */}}
{{- define "steadyhand.podBase" -}}
serviceAccountName: {{ include "steadyhand.fullname" .root }}
automountServiceAccountToken: false
enableServiceLinks: false
# The first process of the pod then is one that reaps: agents may leave orphans behind.
shareProcessNamespace: true
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
affinity:
  {{- if .values.affinity }}
  {{- toYaml .values.affinity | nindent 2 }}
  {{- else }}
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm:
          topologyKey: kubernetes.io/hostname
          labelSelector:
            matchLabels:
              {{- include "steadyhand.selector" . | nindent 14 }}
  {{- end }}
{{- end -}}

{{- define "steadyhand.env" -}}
- name: STEADYHAND_SERVICE__NODE
  valueFrom:
    fieldRef: {fieldPath: metadata.name}
- name: STEADYHAND_DATABASE_URL
  valueFrom:
    secretKeyRef:
      name: {{ .Values.database.secretName }}
      key: {{ .Values.database.key }}
- name: STEADYHAND_SERVICE__LOG_FORMAT
  value: json
- name: STEADYHAND_SERVICE__METRICS_BIND
  value: {{ printf "0.0.0.0:%d" (int .Values.metrics.port) | quote }}
# Below the volume, which belongs to root: a node closes its directory to others.
- name: STEADYHAND_DATA_DIR
  value: /data/node
# The command line in the pod asks the node itself.
- name: STEADYHAND_URL
  value: http://127.0.0.1:{{ .Values.port }}
- name: STEADYHAND_CONFIG
  value: /etc/steadyhand/steadyhand.toml
{{- if .Values.adminKey.secretName }}
{{- range list "STEADYHAND_API_KEY" "STEADYHAND_TOKEN" }}
- name: {{ . }}
  valueFrom:
    secretKeyRef:
      name: {{ $.Values.adminKey.secretName }}
      key: {{ $.Values.adminKey.key }}
{{- end }}
{{- end }}
{{- if .Values.model.secretName }}
- name: ANTHROPIC_API_KEY_FILE
  value: /etc/steadyhand/secrets/model/key
{{- end }}
{{- if .Values.callbacks.secretName }}
- name: STEADYHAND_CALLBACKS__SECRET_FILE
  value: /etc/steadyhand/secrets/callbacks/key
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "steadyhand.mounts" -}}
- {name: data, mountPath: /data}
- {name: tmp, mountPath: /tmp}
- {name: home, mountPath: /home/steadyhand}
- {name: config, mountPath: /etc/steadyhand/steadyhand.toml, subPath: steadyhand.toml, readOnly: true}
{{- range $name, $secret := include "steadyhand.secrets" . | fromYaml }}
- {name: {{ printf "secret-%s" $name }}, mountPath: {{ printf "/etc/steadyhand/secrets/%s" $name }}, readOnly: true}
{{- end }}
{{- end -}}

{{- define "steadyhand.volumes" -}}
- name: tmp
  emptyDir: {}
- name: home
  emptyDir: {}
- name: config
  configMap:
    name: {{ include "steadyhand.fullname" . }}
{{- range $name, $secret := include "steadyhand.secrets" . | fromYaml }}
- name: {{ printf "secret-%s" $name }}
  secret:
    secretName: {{ $secret.secretName }}
    defaultMode: 0440
    {{- with $secret.key }}
    items:
      - {key: {{ . }}, path: key}
    {{- end }}
{{- end }}
{{- end -}}

{{/* All secrets that are files, by the name of their directory. */}}
{{- define "steadyhand.secrets" -}}
{{- $found := dict -}}
{{- range $name, $secret := dict "model" .Values.model "callbacks" .Values.callbacks -}}
{{- if $secret.secretName -}}
{{- $_ := set $found $name $secret -}}
{{- end -}}
{{- end -}}
{{- range .Values.secretFiles -}}
{{- if hasKey $found .name -}}
{{- fail (printf "secretFiles has %s, which is a name of the chart" .name) -}}
{{- end -}}
{{- $_ := set $found .name (dict "secretName" .secretName) -}}
{{- end -}}
{{- toYaml $found -}}
{{- end -}}

{{- define "steadyhand.ports" -}}
- {name: http, containerPort: {{ .Values.port }}}
- {name: metrics, containerPort: {{ .Values.metrics.port }}}
{{- end -}}

{{/* A first start migrates the database, which may take minutes. */}}
{{- define "steadyhand.probes" -}}
startupProbe:
  httpGet: {path: /livez, port: http}
  periodSeconds: 2
  timeoutSeconds: 5
  failureThreshold: 300
livenessProbe:
  httpGet: {path: /livez, port: http}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: http}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 2
{{- end -}}

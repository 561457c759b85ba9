{{/* A name for all objects: the release's, with the chart's unless it is in it. 52 characters leave room for "-admin" and more. */}}
{{- define "cloud9-relay.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* The name is also the "job" of Prometheus, for which deploy/prometheus asks. */}}
{{- define "cloud9-relay.selectorLabels" -}}
app.kubernetes.io/name: cloud9-relay
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "cloud9-relay.labels" -}}
{{ include "cloud9-relay.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "cloud9-relay.image" -}}
{{- $tagged := printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- with .Values.image.digest }}{{ printf "%s@%s" $tagged . }}{{ else }}{{ $tagged }}{{ end -}}
{{- end -}}

{{/* From SIGTERM to the end, in seconds: lame duck, drain, 5 s over which what is left is closed, and 5 s for the end. */}}
{{- define "cloud9-relay.leaving" -}}
{{- $limits := .Values.config.limits -}}
{{- add (ceil (float64 $limits.lame_duck_s)) (ceil (float64 $limits.drain_timeout_s)) 5 5 -}}
{{- end -}}

{{/*
Kubernetes kills what has not ended by then. It counts from the moment when the pod is told to end, so preStop is in it. 12 s
more are for a node that has a lot to do, as in relay.service.
*/}}
{{- define "cloud9-relay.gracePeriod" -}}
{{- add (int .Values.preStopSeconds) (include "cloud9-relay.leaving" . | int) 12 -}}
{{- end -}}

{{/* Twice what calls.sqlite3 may have, and 128 MiB: its log of writes comes on top, and a volume that is full ends the pod. */}}
{{- define "cloud9-relay.stateBytes" -}}
{{- $quality := .Values.config.quality | default dict -}}
{{- add (mul 2 (int64 ($quality.calls_max_bytes | default 1073741824))) 134217728 -}}
{{- end -}}

{{/* The TCP ports that the relay connects to, as JSON: signaling, entitlement, Redis, OCSP responders, and clients of the web proxy. */}}
{{- define "cloud9-relay.tcpPorts" -}}
{{- $config := .Values.config -}}
{{- $signaling := $config.signaling | default dict -}}
{{- $urls := $signaling.upstreams | default list -}}
{{- range $signaling.routes | default list -}}
{{- $urls = concat $urls (.upstreams | default list) -}}
{{- end -}}
{{- with ($config.entitlement | default dict).url -}}
{{- $urls = append $urls . -}}
{{- end -}}
{{- with ($config.cluster | default dict).redis -}}
{{- $urls = append $urls . -}}
{{- end -}}
{{- $ports := list -}}
{{- range $urls -}}
{{- $given := (urlParse .).host | regexFind ":[0-9]+$" | trimPrefix ":" -}}
{{- $ports = append $ports (int ($given | default (get (dict "https" 443 "http" 80) (urlParse .).scheme) | default 6379)) -}}
{{- end -}}
{{- if not (eq (toString ($config.ocsp | default dict).stapling) "false") -}}
{{- $ports = append $ports 80 -}}
{{- end -}}
{{- if .Values.listen.webProxyPort -}}
{{- $ports = append $ports 443 -}}
{{- range ($config.web_proxy | default dict).allow | default list -}}
{{- with regexFind "^[^:]+:[0-9]+$|\\]:[0-9]+$" . -}}
{{- $ports = append $ports (int (regexFind "[0-9]+$" .)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $ports | uniq | toJson -}}
{{- end -}}

{{/* The UDP ports of upstreams, as JSON. */}}
{{- define "cloud9-relay.udpPorts" -}}
{{- $ports := list -}}
{{- range .Values.config.upstreams -}}
{{- $ports = append $ports (int (regexFind "[0-9]+$" .address)) -}}
{{- end -}}
{{- $ports | uniq | toJson -}}
{{- end -}}

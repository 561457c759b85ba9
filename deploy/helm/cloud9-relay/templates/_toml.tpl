{{/*
relay.toml. Helm's own toToml is not used: it writes whole numbers as 20000.0, which the relay does not take for a count, and a
failure as text in the file.
*/}}

{{/* One value in a line. A JSON string is a TOML string. Tables within a table are inline. */}}
{{- define "cloud9-relay.tomlValue" -}}
{{- if kindIs "string" . -}}
{{ toJson . }}
{{- else if kindIs "bool" . -}}
{{ . }}
{{- else if kindIs "slice" . -}}
[{{ range $number, $one := . }}{{ if $number }}, {{ end }}{{ include "cloud9-relay.tomlValue" $one }}{{ end }}]
{{- else if kindIs "map" . -}}
{ {{ range $number, $key := keys . | sortAlpha }}{{ if $number }}, {{ end }}{{ toJson $key }} = {{ include "cloud9-relay.tomlValue" (index $ $key) }}{{ end }} }
{{- else if kindIs "invalid" . -}}
{{- fail "config: expected no null in a list or an inner table" -}}
{{- else if eq (float64 (int64 .)) (float64 .) -}}
{{ int64 . }}
{{- else -}}
{{ . }}
{{- end -}}
{{- end -}}

{{- define "cloud9-relay.tomlKeys" -}}
{{- range $key := keys . | sortAlpha }}
{{- $value := index $ $key }}
{{- if not (kindIs "invalid" $value) }}
{{ $key }} = {{ include "cloud9-relay.tomlValue" $value }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Tables, and lists of tables. */}}
{{- define "cloud9-relay.toml" -}}
{{- range $name := keys . | sortAlpha }}
{{- $table := index $ $name }}
{{- if kindIs "map" $table }}

[{{ $name }}]
{{- include "cloud9-relay.tomlKeys" $table }}
{{- else }}
{{- range $table }}

[[{{ $name }}]]
{{- include "cloud9-relay.tomlKeys" . }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* [listen], as JSON. */}}
{{- define "cloud9-relay.listen" -}}
{{- $listen := .Values.listen -}}
{{- $tls := list -}}
{{- $webProxy := list -}}
{{- range $listen.hosts -}}
{{- $tls = append $tls (printf "%s:%d" . (int $listen.tlsPort)) -}}
{{- if $listen.webProxyPort -}}
{{- $webProxy = append $webProxy (printf "%s:%d" . (int $listen.webProxyPort)) -}}
{{- end -}}
{{- end -}}
{{- $table := dict "tls" $tls "web_proxy" $webProxy "workers" $listen.workers -}}
{{- $_ := set $table "admin" (printf "%s:%d" (first $listen.hosts) (int $listen.adminPort)) -}}
{{- $_ := set $table "admin_hosts" $listen.adminHosts -}}
{{- if $listen.proxyProtocolFrom -}}
{{- $_ := set $table "proxy_protocol" (concat $tls $webProxy) -}}
{{- end -}}
{{- with $listen.clientCertificates -}}
{{- $asked := dict -}}
{{- range $address := $tls -}}
{{- $_ := set $asked $address $listen.clientCertificates -}}
{{- end -}}
{{- $_ := set $table "client_certificates" $asked -}}
{{- $_ := set $table "client_ca" ($listen.clientCa | required "listen.clientCa: expected a file with authorities, because of listen.clientCertificates") -}}
{{- end -}}
{{- toJson $table -}}
{{- end -}}

{{/* The whole file. Paths count from its folder. */}}
{{- define "cloud9-relay.relayToml" -}}
{{- range list "listen" "admin" "balancers" "certificates" -}}
{{- if hasKey $.Values.config . -}}
{{- fail (printf "config.%s: the chart writes this table; expected the values listen, admin and certificates instead" .) -}}
{{- end -}}
{{- end -}}
{{- $config := deepCopy .Values.config -}}
{{- $_ := set $config "listen" (include "cloud9-relay.listen" . | fromJson) -}}
{{- $_ := set $config "admin" (dict "token_hash" (dict "file" "admin/token_hash")) -}}
{{- if .Values.listen.proxyProtocolFrom -}}
{{- $_ := set $config "balancers" (dict "networks" .Values.listen.proxyProtocolFrom) -}}
{{- end -}}
{{- $certificates := list -}}
{{- range .Values.certificates -}}
{{- $folder := printf "certificates/%s" . -}}
{{- $certificates = append $certificates (dict "certificate" (printf "%s/tls.crt" $folder) "private_key" (printf "%s/tls.key" $folder)) -}}
{{- end -}}
{{- $_ := set $config "certificates" $certificates -}}
{{- include "cloud9-relay.toml" $config | trim -}}
{{- end -}}

{{/* Values that cannot work, all of them in one refusal. */}}
{{- define "gpuplugin.checkValues" -}}
{{- $wrong := list }}
{{- if contains "nvidia/k8s-device-plugin" .Values.image.repository }}
{{- $wrong = append $wrong "image.repository is that of NVIDIA's plugin: delete image.repository and image.tag, or name an image of gpuplugin" }}
{{- end }}
{{- if not (or .Values.simulated.enabled .Values.runtimeClassName (include "gpuplugin.usesCdi" .)) }}
{{- $wrong = append $wrong "runtimeClassName is empty, so the driver comes from the host, which takes a cdi-* deviceListStrategy: delete runtimeClassName (null in NVIDIA's values) to use nvidia" }}
{{- end }}
{{- if include "gpuplugin.isDra" . }}
{{- if semverCompare "<1.34-0" .Capabilities.KubeVersion.Version }}
{{- $wrong = append $wrong (printf "allocation: dra needs Kubernetes 1.36 (1.34 with feature gates, see docs/dra.md), and this is %s: delete allocation" .Capabilities.KubeVersion.Version) }}
{{- end }}
{{- if include "gpuplugin.strategies" . }}
{{- $wrong = append $wrong "deviceListStrategy: with allocation dra devices come by CDI alone: delete it" }}
{{- end }}
{{- if eq .Values.registration "classic" }}
{{- $wrong = append $wrong "registration: classic is for device plugins, the kubelet finds a DRA driver by its plugin watcher alone: delete it" }}
{{- end }}
{{- range $one := list "--allocation" "--dra-driver-name" "--kubelet-dir" "--cdi-root" }}
{{- range $.Values.extraArgs }}
{{- if hasPrefix $one . }}
{{- $wrong = append $wrong (printf "extraArgs: %s is not what the volumes and classes of this release are made for: use allocation, dra.driverName, kubeletDir" $one) }}
{{- end }}
{{- end }}
{{- end }}
{{- else }}
{{- if not (has (toString (dig "rollingUpdate" "maxSurge" 0 (default dict .Values.updateStrategy))) (list "0" "0%")) }}
{{- $wrong = append $wrong "updateStrategy.rollingUpdate.maxSurge: two device plugins of one resource on a node disconnect each other: delete it" }}
{{- end }}
{{- range .Values.extraArgs }}
{{- if hasPrefix "--allocation" . }}
{{- $wrong = append $wrong "extraArgs: set allocation: dra in place of --allocation, which lacks rights, folders and classes" }}
{{- end }}
{{- end }}
{{- end }}
{{- if (default dict .Values.gfd).enabled }}
{{- $wrong = append $wrong "gfd.enabled: the plugin writes these labels itself: delete it, and set nodeLabels.enabled: true" }}
{{- end }}
{{- if (default dict .Values.nfd).enabled }}
{{- $wrong = append $wrong "nfd.enabled: this chart does not install Node Feature Discovery: delete it, and install that by itself" }}
{{- end }}
{{- if (default dict .Values.mps).enabled }}
{{- $wrong = append $wrong "mps.enabled: there is no MPS here: delete it" }}
{{- end }}
{{- if (default dict .Values.componentSelectorLabels).enabled }}
{{- $wrong = append $wrong "componentSelectorLabels.enabled: there is one component here: delete it" }}
{{- end }}
{{- $plugin := default dict .Values.devicePlugin }}
{{- if and (hasKey $plugin "enabled") (not $plugin.enabled) }}
{{- $wrong = append $wrong "devicePlugin.enabled: without it nothing is left to install: delete it" }}
{{- end }}
{{- if $plugin.enableHostNetwork }}
{{- $wrong = append $wrong "devicePlugin.enableHostNetwork: the plugin has no use for it: delete it" }}
{{- end }}
{{- range dig "containers" "main" "env" list $plugin }}
{{- if not (has .name (list "NVIDIA_VISIBLE_DEVICES" "NVIDIA_DRIVER_CAPABILITIES")) }}
{{- $wrong = append $wrong (printf "devicePlugin.containers.main.env: move %s to extraEnv" .name) }}
{{- end }}
{{- end }}
{{- if and .Values.config.default (not .Values.config.map) (not .Values.config.name) }}
{{- $wrong = append $wrong (printf "config.default is %s, and there are no files to choose from: give config.map or config.name" .Values.config.default) }}
{{- end }}
{{- $fallback := .Values.config.fallbackStrategies }}
{{- if and $fallback (ne (join "," $fallback) "named,single") }}
{{- $wrong = append $wrong "config.fallbackStrategies is always [named, single] here: delete it, and set config.default" }}
{{- end }}
{{- range $file, $text := .Values.config.map }}
{{- range include "gpuplugin.problemsOf" (dict "text" $text "known" ($.Files.Get "files/config-keys.json" | fromJson) "lenient" $.Values.config.allowUnknownKeys) | splitList "\n" }}
{{- if . }}{{ $wrong = append $wrong (printf "config.map.%s: %s" $file .) }}{{ end }}
{{- end }}
{{- end }}
{{- if $wrong }}
{{- fail (printf "\n  - %s" (join "\n  - " $wrong)) }}
{{- end }}
{{- end }}

{{/* A line for each thing that is wrong with the text of a configuration file. */}}
{{- define "gpuplugin.problemsOf" -}}
{{- $data := dict }}
{{- if kindIs "string" .text }}{{ $data = fromYaml .text }}{{ end }}
{{- if not (kindIs "string" .text) }}is not text: write `|` behind its name
{{- else if hasKey $data "Error" }}is not YAML with keys at the top: {{ $data.Error | replace "\n" " " }}
{{- else if hasKey $data "kind" }}is a whole {{ $data.kind }}: give the text under its `data`, or name the ConfigMap as config.name
{{- else if ne (get $data "version" | default "v1" | toString) "v1" }}version is {{ $data.version }}, and only v1 is known
{{- else if not .lenient }}{{ include "gpuplugin.unknownKeys" (dict "value" $data "path" "" "known" .known) }}
{{- end }}
{{- end }}

{{/* A line for each key that the plugin would not know; `known` says what is below each path. */}}
{{- define "gpuplugin.unknownKeys" -}}
{{- range $key, $inner := .value }}
{{- $path := printf "%s%s" $.path $key }}
{{- $below := get $.known (lower $path) }}
{{- if not $below }}
{{- if or $.path (not (hasPrefix "x-" $key)) }}
{{ $path }} is no key of the configuration{{ with get $.known (trimSuffix "." $.path | lower) }}; there are {{ . }}{{ end }}
{{- end }}
{{- else if kindIs "map" $inner }}
{{- if ne $below "value" }}{{ include "gpuplugin.unknownKeys" (dict "value" $inner "path" (printf "%s." $path) "known" $.known) }}{{ end }}
{{- else if kindIs "slice" $inner }}
{{- range $inner }}
{{- if kindIs "map" . }}{{ include "gpuplugin.unknownKeys" (dict "value" . "path" (printf "%s." $path) "known" $.known) }}{{ end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

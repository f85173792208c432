{{/* Names. */}}
{{- define "gpuplugin.name" -}}
{{- default "nvidia-device-plugin" .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "gpuplugin.fullname" -}}
{{- $name := include "gpuplugin.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "gpuplugin.namespace" -}}
{{- $namespace := default .Release.Namespace .Values.namespaceOverride }}
{{- if and (eq $namespace "default") (not .Values.allowDefaultNamespace) }}
{{- fail "this chart wants a namespace of its own: --namespace gpu-device-plugin --create-namespace, or allowDefaultNamespace=true" }}
{{- end }}
{{- $namespace }}
{{- end }}

{{- define "gpuplugin.selectorLabels" -}}
{{- if .Values.selectorLabelsOverride }}
{{- toYaml .Values.selectorLabelsOverride }}
{{- else -}}
app.kubernetes.io/name: {{ include "gpuplugin.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
{{- end }}

{{- define "gpuplugin.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{ include "gpuplugin.selectorLabels" . }}
{{- end }}

{{- define "gpuplugin.image" -}}
{{- $image := .Values.image }}
{{- $tag := default (printf "%s%s" .Chart.AppVersion (ternary "-sim" "" .Values.simulated.enabled)) $image.tag }}
{{- if $image.digest }}
{{- printf "%s%s@%s" $image.repository (ternary (printf ":%s" $image.tag) "" (ne $image.tag "")) $image.digest }}
{{- else }}
{{- printf "%s:%s" $image.repository $tag }}
{{- end }}
{{- end }}

{{- define "gpuplugin.serviceAccount" -}}
{{- default (ternary (include "gpuplugin.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name }}
{{- end }}

{{/* The configuration: the ConfigMap's name, and the file for nodes that do not choose. */}}
{{- define "gpuplugin.configMap" -}}
{{- if and .Values.config.name .Values.config.map }}
{{- fail "config.name and config.map: give one of them" }}
{{- end }}
{{- if and .Values.replicas (or .Values.config.name .Values.config.map) }}
{{- fail "replicas and config: give one of them, since the file says replicas, too" }}
{{- end }}
{{- default (printf "%s-config" (include "gpuplugin.fullname" .)) .Values.config.name }}
{{- end }}

{{- define "gpuplugin.configFile" -}}
{{- $map := .Values.config.map }}
{{- if .Values.config.default }}
{{- if and $map (not (hasKey $map .Values.config.default)) }}
{{- fail (printf "config.default: %s is not in config.map" .Values.config.default) }}
{{- end }}
{{- .Values.config.default }}
{{- else if .Values.config.name }}
{{- /* As far as the cluster can be asked. */ -}}
{{- $files := default dict (lookup "v1" "ConfigMap" (include "gpuplugin.namespace" .) .Values.config.name).data }}
{{- if hasKey $files "default" }}default
{{- else if eq (len $files) 1 }}{{ keys $files | first }}
{{- else }}config.yaml
{{- end }}
{{- else if not $map }}config.yaml
{{- else if eq (len $map) 1 }}{{ keys $map | first }}
{{- else if hasKey $map "default" }}default
{{- else }}
{{- fail (printf "config.map has %d files: name the one for nodes that do not choose as config.default" (len $map)) }}
{{- end }}
{{- end }}

{{- define "gpuplugin.strategies" -}}
{{- $given := .Values.deviceListStrategy }}
{{- if kindIs "slice" $given }}{{ join "," $given }}{{ else }}{{ default "" $given }}{{ end }}
{{- end }}

{{/* "true" or nothing. */}}
{{- define "gpuplugin.isDra" -}}
{{- if eq .Values.allocation "dra" }}true{{ end }}
{{- end }}

{{- /* A group that nothing else on a node has: it may write the folders of claims and of CDI specs. */ -}}
{{- define "gpuplugin.draGroup" -}}2000002112{{- end }}

{{/* With DRA each pod has sockets of its own, so an upgrade has no gap; two device plugins of one
     resource on a node get in each other's way. */}}
{{- define "gpuplugin.updateStrategy" -}}
{{- $given := deepCopy (default (dict "type" "RollingUpdate") .Values.updateStrategy) }}
{{- if eq $given.type "RollingUpdate" }}
{{- $rolling := default dict $given.rollingUpdate }}
{{- $usual := dict "maxUnavailable" 1 "maxSurge" 0 }}
{{- $noSurge := has (toString $rolling.maxSurge) (list "0" "0%") }}
{{- if and (include "gpuplugin.isDra" .) (kindIs "invalid" $rolling.maxUnavailable) (not $noSurge) }}
{{- $usual = dict "maxUnavailable" 0 "maxSurge" 1 }}
{{- end }}
{{- $_ := set $given "rollingUpdate" (merge $rolling $usual) }}
{{- end }}
{{- toYaml $given }}
{{- end }}

{{- define "gpuplugin.usesCdi" -}}
{{- if or (include "gpuplugin.isDra" .) (contains "cdi-" (include "gpuplugin.strategies" .)) }}true{{ end }}
{{- end }}

{{- define "gpuplugin.usesApi" -}}
{{- if or (include "gpuplugin.isDra" .) .Values.nodeReports.enabled (include "gpuplugin.labelsByApi" .) .Values.perNodeConfig.enabled (include "gpuplugin.podLoads" .) (include "gpuplugin.nodePools" .) }}true{{ end }}
{{- end }}

{{/* The writer of labels: "true" or nothing. */}}
{{- define "gpuplugin.labelsByApi" -}}
{{- if and .Values.nodeLabels.enabled (ne .Values.nodeLabels.writer "file") }}true{{ end }}
{{- end }}

{{- define "gpuplugin.labelsByFile" -}}
{{- if and .Values.nodeLabels.enabled (eq .Values.nodeLabels.writer "file") }}true{{ end }}
{{- end }}

{{/* Of simulated GPUs: "true" or nothing. */}}
{{- define "gpuplugin.podFiles" -}}
{{- if and .Values.simulated.enabled .Values.simulated.podFiles }}true{{ end }}
{{- end }}

{{- define "gpuplugin.podLoads" -}}
{{- if and (include "gpuplugin.podFiles" .) .Values.simulated.loads }}true{{ end }}
{{- end }}

{{- define "gpuplugin.nodePools" -}}
{{- if and .Values.simulated.enabled .Values.simulated.pools }}true{{ end }}
{{- end }}

{{- define "gpuplugin.runtimeClassName" -}}
{{- if not .Values.simulated.enabled }}{{ default "" .Values.runtimeClassName }}{{ end }}
{{- end }}

{{- define "gpuplugin.isPrivileged" -}}
{{- if not (or .Values.simulated.enabled .Values.runtimeClassName) }}true{{ end }}
{{- end }}

{{- /* "true" or nothing: asked for, or none there but one that this release made. */ -}}
{{- define "gpuplugin.makesRuntimeClass" -}}
{{- $name := include "gpuplugin.runtimeClassName" . }}
{{- $create := .Values.runtimeClass.create }}
{{- if and $name (kindIs "bool" $create) }}
{{- if $create }}true{{ end }}
{{- else if $name }}
{{- $there := lookup "node.k8s.io/v1" "RuntimeClass" "" $name }}
{{- $made := dig "metadata" "annotations" dict $there }}
{{- $own := printf "%s/%s" .Release.Namespace .Release.Name }}
{{- if or (not $there) (eq $own (printf "%s/%s" (get $made "meta.helm.sh/release-namespace") (get $made "meta.helm.sh/release-name"))) }}true{{ end }}
{{- end }}
{{- end }}

{{- define "gpuplugin.podMetrics" -}}
{{- if or .Values.metrics.pods .Values.observability.enabled }}true{{ end }}
{{- end }}

{{- define "gpuplugin.podSecurityContext" -}}
{{- $context := deepCopy (default dict .Values.podSecurityContext) }}
{{- if or .Values.selinux.enabled .Values.openshift.enabled }}
{{- $context = mergeOverwrite (dict "seLinuxOptions" (dict "type" "spc_t")) $context }}
{{- end }}
{{- if include "gpuplugin.isDra" . }}
{{- $group := include "gpuplugin.draGroup" . | int64 }}
{{- $_ := set $context "supplementalGroups" (append (default list $context.supplementalGroups) $group) }}
{{- end }}
{{- toYaml $context }}
{{- end }}

{{- define "gpuplugin.isRoot" -}}
{{- $cdi := and (include "gpuplugin.usesCdi" .) (not (include "gpuplugin.isDra" .)) }}
{{- if or (include "gpuplugin.podMetrics" .) $cdi .Values.setTimeSlices.enabled (eq .Values.registration "classic") (include "gpuplugin.podLoads" .) (include "gpuplugin.labelsByFile" .) }}true{{ end }}
{{- end }}

{{- define "gpuplugin.securityContext" -}}
{{- $root := include "gpuplugin.isRoot" . }}
runAsNonRoot: {{ not $root }}
runAsUser: {{ ternary 0 65534 (not (not $root)) }}
runAsGroup: {{ ternary 0 65534 (not (not $root)) }}
readOnlyRootFilesystem: true
{{- if include "gpuplugin.isPrivileged" . }}
privileged: true
allowPrivilegeEscalation: true
{{- else }}
allowPrivilegeEscalation: {{ .Values.setTimeSlices.enabled }}
capabilities:
  drop: ["ALL"]
  {{- if .Values.setTimeSlices.enabled }}
  add: ["SYS_ADMIN"]
  {{- end }}
{{- end }}
{{- end }}

{{/* One variable for each value that is not null, but for those of extraEnv. */}}
{{- define "gpuplugin.variables" -}}
{{- $cdi := .Values.cdi }}
{{- $class := include "gpuplugin.runtimeClassName" . }}
{{- /* Of a ConfigMap of others the plugin sees the files. */ -}}
{{- $isKnown := or (ne .Values.config.default "") (eq .Values.config.name "") }}
{{- $own := list }}
{{- range .Values.extraEnv }}{{ $own = append $own .name }}{{ end }}
{{- $kubelet := ternary .Values.kubeletDir "/var/lib/kubelet" (eq (include "gpuplugin.isDra" .) "true") }}
{{- $all := list
  (list "NVIDIA_VISIBLE_DEVICES" (ternary nil "all" (empty $class)))
  (list "NVIDIA_DRIVER_CAPABILITIES" (ternary nil "utility" (empty $class)))
  (list "MIG_STRATEGY" .Values.migStrategy)
  (list "FAIL_ON_INIT_ERROR" .Values.failOnInitError)
  (list "DEVICE_LIST_STRATEGY" (include "gpuplugin.strategies" . | default nil))
  (list "DEVICE_ID_STRATEGY" .Values.deviceIDStrategy)
  (list "NVIDIA_DRIVER_ROOT" .Values.nvidiaDriverRoot)
  (list "NVIDIA_DEV_ROOT" .Values.nvidiaDevRoot)
  (list "GDRCOPY_ENABLED" .Values.gdrcopyEnabled)
  (list "GDS_ENABLED" .Values.gdsEnabled)
  (list "MOFED_ENABLED" .Values.mofedEnabled)
  (list "DEVICE_DISCOVERY_STRATEGY" .Values.deviceDiscoveryStrategy)
  (list "PASS_DEVICE_SPECS" .Values.compatWithCPUManager)
  (list "NVIDIA_CDI_HOOK_PATH" $cdi.nvidiaHookPath)
  (list "CDI_DISABLE_HOOKS" $cdi.disableHooks)
  (list "CDI_FEATURE_FLAGS" $cdi.featureFlags)
  (list "SHARED_DEVICES_ALLOCATION_POLICY" .Values.policy)
  (list "GPUPLUGIN_INCLUDE_GPUS" (join "," .Values.includeGpus | default nil))
  (list "GPUPLUGIN_EXCLUDE_GPUS" (join "," .Values.excludeGpus | default nil))
  (list "DP_DISABLE_HEALTHCHECKS" .Values.ignoreXids)
  (list "DP_ENABLE_HEALTHCHECKS" .Values.fatalXids)
  (list "GPUPLUGIN_LOG_LEVEL" .Values.logLevel)
  (list "GPUPLUGIN_METRICS_INTERVAL" .Values.metrics.interval)
  (list "GPUPLUGIN_POD_METRICS" (include "gpuplugin.podMetrics" . | default nil))
  (list "GPUPLUGIN_DCGM_METRICS" (ternary "true" nil .Values.metrics.dcgm))
  (list "GPUPLUGIN_ALLOCATION" (ternary "dra" nil (eq .Values.allocation "dra")))
  (list "GPUPLUGIN_DRA_DRIVER_NAME" (ternary nil .Values.dra.driverName (or (ne .Values.allocation "dra") (eq .Values.dra.driverName "gpu.gpuplugin.dev"))))
  (list "GPUPLUGIN_KUBELET_DIR" (ternary nil .Values.kubeletDir (or (ne .Values.allocation "dra") (eq .Values.kubeletDir "/var/lib/kubelet"))))
  (list "GPUPLUGIN_HEALTH_EVICT_LOST" (ternary .Values.dra.evictLost nil (eq .Values.allocation "dra")))
  (list "GPUPLUGIN_REGISTRATION" (ternary "classic" nil (eq .Values.registration "classic")))
  (list "GPUPLUGIN_BACKEND" (ternary "sim" nil .Values.simulated.enabled))
  (list "GPUPLUGIN_SCENARIO" (ternary (ternary "/etc/gpuplugin-scenarios" .Values.simulated.scenario (eq (include "gpuplugin.nodePools" .) "true")) nil .Values.simulated.enabled))
  (list "GPUPLUGIN_POD_FILES" (ternary "/var/lib/gpuplugin-sim" nil (eq (include "gpuplugin.podFiles" .) "true")))
  (list "GPUPLUGIN_HOST_PROC" (ternary (printf "%s/host/proc" $kubelet) nil (eq (include "gpuplugin.podLoads" .) "true")))
  (list "GPUPLUGIN_POD_LOGS" (ternary (printf "%s/host/pod-logs" $kubelet) nil (eq (include "gpuplugin.podLoads" .) "true")))
  (list "GPUPLUGIN_KUBERNETES_REPORTS" (ternary "true" nil .Values.nodeReports.enabled))
  (list "GPUPLUGIN_NODE_LABELS" (ternary .Values.nodeLabels.writer nil .Values.nodeLabels.enabled))
  (list "GPUPLUGIN_CONFIG_MAP_DIR" (ternary "/etc/gpuplugin" nil .Values.perNodeConfig.enabled))
  (list "DEFAULT_CONFIG" (ternary (include "gpuplugin.configFile" .) nil (and .Values.perNodeConfig.enabled $isKnown)))
}}
{{- range $all }}
{{- $value := index . 1 }}
{{- if kindIs "slice" $value }}{{ $value = join "," $value }}{{ end }}
{{- if not (or (kindIs "invalid" $value) (has (index . 0) $own)) }}
- name: {{ index . 0 }}
  value: {{ $value | toString | quote }}
{{- end }}
{{- end }}
{{- if not (has "NODE_NAME" $own) }}
- name: NODE_NAME
  valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
{{- end }}
{{- end }}

{{- define "gpuplugin.probe" -}}
httpGet: {path: {{ .path }}, port: metrics}
{{ toYaml .probe }}
{{- end }}

{{- define "gpuplugin.relabelings" -}}
{{- /* Alerts and dashboard speak of nodes; a pod's address changes with every rollout. */ -}}
- sourceLabels: [__meta_kubernetes_pod_node_name]
  targetLabel: node
- sourceLabels: [__meta_kubernetes_pod_node_name]
  targetLabel: instance
{{- end }}

{{/* The page of the alerts' runbook, as files/rules.yaml names it. */}}
{{- define "gpuplugin.runbook" -}}
https://github.com/gpuplugin/gpuplugin/blob/main/docs/runbook.md
{{- end }}

{{/* The required terms of the affinity, as a list under `terms`. */}}
{{- define "gpuplugin.nodeTerms" -}}
{{- $required := dig "nodeAffinity" "requiredDuringSchedulingIgnoredDuringExecution" dict .Values.affinity }}
{{- dict "terms" (default list (default dict $required).nodeSelectorTerms) | toYaml }}
{{- end }}

{{/* "true" or nothing: whether `labels` suit one of the `terms`. */}}
{{- define "gpuplugin.suits" -}}
{{- $labels := .labels }}
{{- $suits := false }}
{{- range .terms }}
{{- $all := gt (len (default list .matchExpressions)) 0 }}
{{- range .matchExpressions }}
{{- $there := hasKey $labels .key }}
{{- $listed := and $there (has (get $labels .key) (default list .values)) }}
{{- $number := get $labels .key | int64 }}
{{- $limit := first (default (list "0") .values) | int64 }}
{{- $holds := dict "In" $listed "NotIn" (not $listed) "Exists" $there "DoesNotExist" (not $there) "Gt" (and $there (gt $number $limit)) "Lt" (and $there (lt $number $limit)) }}
{{- $all = and $all (get $holds .operator) }}
{{- end }}
{{- $suits = or $suits $all }}
{{- end }}
{{- if $suits }}true{{ end }}
{{- end }}

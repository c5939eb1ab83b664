{{/* What all pods of ours have in common. */}}

{{- define "travelrec.podSecurity" -}}
securityContext:
  runAsNonRoot: true
  runAsUser: {{ .user | default 10001 }}
  runAsGroup: {{ .user | default 10001 }}
  fsGroup: {{ .user | default 10001 }}
  seccompProfile: { type: RuntimeDefault }
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "travelrec.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: { drop: [ALL] }
{{- end }}

{{- define "travelrec.envFrom" -}}
envFrom:
  - configMapRef: { name: {{ include "travelrec.name" . }} }
  {{- if .Values.secrets }}
  - secretRef: { name: {{ include "travelrec.name" . }} }
  {{- end }}
  {{- if .Values.existingSecret }}
  - secretRef: { name: {{ .Values.existingSecret }} }
  {{- end }}
{{- end }}

{{- define "travelrec.checksums" -}}
checksum/settings: {{ include "travelrec.settings" . | sha256sum }}
checksum/secrets: {{ .Values.secrets | toYaml | sha256sum }}
{{- end }}

{{- define "travelrec.temporary" -}}
- name: tmp
  emptyDir: { medium: Memory, sizeLimit: 64Mi }
{{- end }}

{{/* (dict "root" $ "component" "api" "values" .Values.api) */}}
{{- define "travelrec.placement" -}}
topologySpreadConstraints:
  {{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "travelrec.selector" $ | nindent 8 }}
    matchLabelKeys: [pod-template-hash]
  {{- end }}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

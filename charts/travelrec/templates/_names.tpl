{{/* Names and labels. */}}

{{- define "travelrec.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{/* (dict "root" $ "component" "api") */}}
{{- define "travelrec.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "travelrec.labels" -}}
{{ include "travelrec.selector" . }}
app.kubernetes.io/version: {{ .root.Values.image.tag | default .root.Chart.AppVersion | regexReplaceAll "[^A-Za-z0-9_.-]" "_" | trunc 63 | trimAll "_.-" | quote }}
app.kubernetes.io/part-of: travelrec
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{- define "travelrec.image" -}}
{{- with .root.Values.image.registry }}{{ . }}/{{ end }}{{ get .root.Values.image .image }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end }}

{{- define "travelrec.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (ternary (include "travelrec.name" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{/* The settings as they are set, with those of the development servers. */}}
{{- define "travelrec.settings" -}}
{{- $settings := dict "HOST" "0.0.0.0" "PORT" "3000" "METRICS_PORT" "9000" }}
{{- if .Values.dev.enabled }}
{{- with include "travelrec.devBroker" . }}
{{- $_ := set $settings "BROKER_URL" . }}
{{- end }}
{{- $_ := set $settings "STORE_URL" (printf "mongodb://%s-mongo.%s:27017/travelrec" (include "travelrec.name" .) .Release.Namespace) }}
{{- if eq "true" (include "travelrec.offlineModel" .) }}
{{- $_ := set $settings "OPENAI_BASE_URL" (printf "http://%s-model:8089/v1" (include "travelrec.name" .)) }}
{{- end }}
{{- end }}
{{- range $name, $value := .Values.settings }}
{{- if not (has (toString $value) (list "" "<nil>")) }}{{ $_ := set $settings $name (toString $value) }}{{ end }}
{{- end }}
{{- $settings | toYaml }}
{{- end }}

{{/* The address of the development broker; empty where another one is named. */}}
{{- define "travelrec.devBroker" -}}
{{- $named := or .Values.settings.BROKER_URL .Values.secrets.BROKER_URL .Values.settings.RABBITMQ_URL .Values.secrets.RABBITMQ_URL .Values.autoscaling.rabbitmqFromEnv }}
{{- if and .Values.dev.enabled (not $named) }}
{{- $host := printf "%s-%s.%s" (include "travelrec.name" .) .Values.dev.broker .Release.Namespace }}
{{- ternary (printf "amqp://travelrec:travelrec@%s:5672" $host) (printf "kafka://%s:9092" $host) (eq .Values.dev.broker "rabbitmq") }}
{{- end }}
{{- end }}

{{/* When the topics are made. */}}
{{- define "travelrec.topicsHook" -}}
{{ if or .Values.dev.enabled .Values.secrets }}post-install,post-upgrade{{ else }}pre-install,pre-upgrade{{ end }}
{{- end }}

{{- define "travelrec.offlineModel" -}}
{{- and .Values.dev.enabled (not .Values.existingSecret) (not .Values.secrets.OPENAI_API_KEY) (not .Values.settings.OPENAI_BASE_URL) }}
{{- end }}

{{/* Fails, with what to do, where something needed is not named. */}}
{{- define "travelrec.checked" -}}
{{- range $alias, $name := dict "KAFKA_BOOTSTRAP_SERVERS" "BROKER_URL (kafka://host:9092)" "MONGODB_URL" "STORE_URL" }}
{{- if or (get $.Values.settings $alias) (get $.Values.secrets $alias) }}
{{- fail (printf "settings.%s: here it is called %s, as KEDA and the hook for the topics read it" $alias $name) }}
{{- end }}
{{- end }}
{{- if and .Values.workers.join.enabled (eq 0 (int .Values.workers.join.scaling.minReplicas)) }}
{{- fail "workers.join.scaling.minReplicas: 1 at the least, for who would tell of trips that are never whole?" }}
{{- end }}
{{- if and .Values.autoscaling.rabbitmqFromEnv .Values.settings.BROKER_URL }}
{{- fail "autoscaling.rabbitmqFromEnv: is for a broker that only existingSecret names, and settings.BROKER_URL names one; leave one of them out" }}
{{- end }}
{{- if and (or .Values.workers.chat.enabled .Values.workers.relay.enabled) (not (or .Values.settings.REDIS_URL .Values.secrets.REDIS_URL .Values.existingSecret)) }}
{{- fail "settings.REDIS_URL: name the Redis of the chats (redis://host:6379), or workers.chat.enabled=false and workers.relay.enabled=false" }}
{{- end }}
{{- if not .Values.dev.enabled }}
{{- if not (or .Values.settings.BROKER_URL .Values.secrets.BROKER_URL .Values.settings.RABBITMQ_URL .Values.secrets.RABBITMQ_URL .Values.existingSecret) }}
{{- fail "settings.BROKER_URL: name your Kafka (kafka://host:9092) or RabbitMQ (amqp://host), or put BROKER_URL or RABBITMQ_URL into existingSecret; dev.enabled=true brings a small one for kind (dev.broker)" }}
{{- end }}
{{- if not (or .Values.settings.STORE_URL .Values.secrets.STORE_URL .Values.existingSecret) }}
{{- fail "settings.STORE_URL: name your MongoDB (mongodb://host/database), or put STORE_URL into existingSecret; dev.enabled=true brings a small one for kind" }}
{{- end }}
{{- if not (or .Values.settings.OPENAI_BASE_URL .Values.secrets.OPENAI_API_KEY .Values.existingSecret) }}
{{- fail "existingSecret: name a Secret with an OPENAI_API_KEY, or set settings.OPENAI_BASE_URL to a compatible server; dev.enabled=true brings the offline model" }}
{{- end }}
{{- end }}
{{- end }}

{{/* The variable that names the RabbitMQ of the workers; empty on Kafka. */}}
{{- define "travelrec.rabbitmq" -}}
{{- $broker := .Values.secrets.BROKER_URL | default .Values.settings.BROKER_URL | default (include "travelrec.devBroker" .) | toString }}
{{- if hasPrefix "amqp" $broker }}BROKER_URL
{{- else if $broker }}
{{- else if or .Values.settings.RABBITMQ_URL .Values.secrets.RABBITMQ_URL }}RABBITMQ_URL
{{- else }}{{ .Values.autoscaling.rabbitmqFromEnv }}
{{- end }}
{{- end }}

{{/* Whether there must be one worker: RabbitMQ keeps no order between those who share a queue. (dict "root" $ "worker" $worker) */}}
{{- define "travelrec.alone" -}}
{{- if and (include "travelrec.rabbitmq" .root) (or (has "chat" .worker.roles) (has "relay" .worker.roles)) }}true{{ end }}
{{- end }}

{{/* host:port,… of Kafka, as KEDA takes it */}}
{{- define "travelrec.bootstrapServers" -}}
{{- include "travelrec.checked" . }}
{{- if .Values.autoscaling.bootstrapServers }}{{ .Values.autoscaling.bootstrapServers }}
{{- else if or .Values.settings.BROKER_URL (include "travelrec.devBroker" .) }}
{{- .Values.settings.BROKER_URL | default (include "travelrec.devBroker" .) | toString | splitList "://" | last | trimSuffix "/" }}
{{- else }}{{ fail "autoscaling.bootstrapServers: KEDA must know Kafka's addresses, and settings.BROKER_URL does not name them; on RabbitMQ, set autoscaling.rabbitmqFromEnv" }}
{{- end }}
{{- end }}

{{/* Waiting messages for each replica, so that a backlog is gone in time: concurrency x drain / job */}}
{{- define "travelrec.lagThreshold" -}}
{{- max 1 (divf (mulf .concurrency .scaling.drainSeconds) .scaling.typicalJobSeconds | floor | int64) }}
{{- end }}

{{/* A pod that is told to stop may finish what it runs. */}}
{{- define "travelrec.shutdownGrace" -}}{{ add (int64 .timeLimitSeconds) 5 }}{{- end }}
{{- define "travelrec.terminationGrace" -}}{{ add (int64 .timeLimitSeconds) 20 }}{{- end }}

{{/* The database in STORE_URL, as the store itself reads it. */}}
{{- define "travelrec.database" -}}
{{- $url := .Values.secrets.STORE_URL | default .Values.settings.STORE_URL | default "" | toString }}
{{- if not (or $url .Values.dev.enabled) }}
{{- fail "workers.jobs.scaling.database: name the database that STORE_URL in existingSecret names; with minReplicas 0 KEDA looks for pending jobs in it" }}
{{- end }}
{{- regexReplaceAll "^[^:]+://[^/]*/?([^?]*).*$" $url "${1}" | default "travelrec" }}
{{- end }}

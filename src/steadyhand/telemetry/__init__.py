"""OpenTelemetry: the spans of jobs, and their export with the service's metrics by OTLP.

It needs the extra `steadyhand[otel]`. Nothing here imports a package of OpenTelemetry before the export begins.
"""

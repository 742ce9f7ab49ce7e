"""The figures of a service for Prometheus: plain counters and histograms, and one table of their names.

Nothing here imports prometheus_client before the first scrape (`metrics.exposition`).
"""

from steadyhand.metrics.names import METRICS, OTHER, MetricSpec
from steadyhand.metrics.service_metrics import Reading, ServiceMetrics

__all__ = ["METRICS", "OTHER", "MetricSpec", "Reading", "ServiceMetrics"]

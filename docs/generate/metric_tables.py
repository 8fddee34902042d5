"""The metrics, as a scrape of a real executor gives them."""

from __future__ import annotations

import urllib.request

from markdown_text import code, table
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from executor_adapter import Job
from executor_adapter.config import MonitoringSettings, Settings
from executor_adapter.testing import InlineExecutor

NOT_LABELS = {"le"}
"""The bound of a histogram's bucket."""


def reference() -> str:
    """Every metric with its type, its labels and what it counts."""
    rows = [
        (code(_name(each)), each.type, ", ".join(map(code, _labels(each))), each.documentation)
        for each in scraped()
        if not each.name.endswith("_created")
    ]
    return table(("metric", "type", "labels", "meaning"), rows)


def scraped() -> list[Metric]:
    """What Prometheus finds after one job that completed and one that was retried."""
    settings = Settings(monitoring=MonitoringSettings(metrics_port=0))
    with InlineExecutor(config=settings) as executor:
        executor.submit(Job(function=int))
        executor.submit(Job(function="builtins:int", args=("x",), retry_attempts=1, retry_delay=0)).exception()
        assert executor.metrics_url is not None
        with urllib.request.urlopen(executor.metrics_url, timeout=10) as answer:
            return list(text_string_to_metric_families(answer.read().decode()))


def _name(metric: Metric) -> str:
    return metric.name + ("_total" if metric.type == "counter" else "")


def _labels(metric: Metric) -> list[str]:
    return sorted({label for sample in metric.samples for label in sample.labels} - NOT_LABELS)

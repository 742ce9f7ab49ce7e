"""The page of the metrics has those of the code; the dashboard and the alert rules use no other ones."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import pytest
import yaml
from tests.docs.pages import PROJECT, by_name, names_in, table, text_of

from steadyhand.job import OutcomeType, State
from steadyhand.metrics.names import (
    CALL_RESULTS,
    CALLBACK_RESULTS,
    LOG_LEVELS,
    METRICS,
    PROCESS_METRICS,
    RATE_LIMIT_ACTIONS,
    TOKEN_KINDS,
    WARM_RESULTS,
    MetricSpec,
)
from steadyhand.ports import PhaseName

PAGE = text_of("metrics.md")
NAME = re.compile(r"\b(?:steadyhand|process)_[a-z0-9_]+")
SELECTOR = re.compile(r"\b((?:steadyhand|process)_[a-z0-9_]+)\{([^}]*)\}")
MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)"([^"]*)"')
GROUPING = re.compile(r"\b(?:by|on) \(([^)]*)\)")
OF_PROMETHEUS = {"instance", "job", "le"}
"""The labels that Prometheus or a histogram adds."""
VALUES: Mapping[str, set[str]] = {
    "action": set(RATE_LIMIT_ACTIONS),
    "kind": set(TOKEN_KINDS),
    "level": set(LOG_LEVELS),
    "outcome": {each.value for each in OutcomeType},
    "phase": set(get_args(PhaseName)),
    "result": {*CALL_RESULTS, *WARM_RESULTS, *CALLBACK_RESULTS},
    "routes": {"native", "openai", "classic"},
    "state": {each.value for each in State},
    "status": {"2xx", "3xx", "4xx", "5xx"},
}


def spec_of(name: str) -> MetricSpec | None:
    """Return the metric of a name in a query; a histogram has three names, and none of its own."""
    for suffix in ("_bucket", "_sum", "_count"):
        spec = METRICS.get(name.removesuffix(suffix))
        if name.endswith(suffix) and spec is not None and spec.type == "histogram":
            return spec
    spec = METRICS.get(name)
    return None if spec is None or spec.type == "histogram" else spec


def queries_of_alerts() -> Iterator[tuple[str, str]]:
    rules = yaml.safe_load((PROJECT / "deploy" / "alerts.yml").read_text("utf-8"))
    for group in rules["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


def queries_of_dashboard() -> Iterator[tuple[str, str]]:
    dashboard = json.loads((PROJECT / "deploy" / "grafana-dashboard.json").read_text("utf-8"))
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield f"{panel['title']} {target['refId']}", target["expr"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]["query"]


QUERIES = [*queries_of_alerts(), *queries_of_dashboard()]


def faults_of(query: str) -> list[str]:
    """Return what a query names and no metric has: names, labels, and values of labels."""
    found: list[str] = []
    labels = set(OF_PROMETHEUS)
    for name in NAME.findall(query):
        spec = spec_of(name)
        if spec is None and name not in PROCESS_METRICS:
            found.append(name)
        labels.update(() if spec is None else spec.labels)
    for name, matchers in SELECTOR.findall(query):
        spec = spec_of(name)
        own = {*OF_PROMETHEUS, *(() if spec is None else spec.labels)}
        for label, _, value in MATCHER.findall(matchers):
            if label not in own:
                found.append(f"{name}.{label}")
            elif label in VALUES:
                found += [f"{label}={each}" for each in value.split("|") if each not in VALUES[label]]
    for group in GROUPING.findall(query):
        found += [each for each in re.findall(r"\w+", group) if each not in labels]
    return found


def test_the_page_has_each_metric_with_its_type_labels_scope_and_meaning_and_no_other() -> None:
    rows = by_name(table(PAGE, "| metric | type | labels | scope | meaning |"))
    assert list(rows) == list(METRICS)
    for name, (kind, labels, scope, meaning) in rows.items():
        spec = METRICS[name]
        assert (kind, tuple(names_in(labels)), names_in(scope)) == (spec.type, spec.labels, [spec.scope]), (
            name
        )
        assert meaning == spec.meaning


def test_the_page_names_no_metric_that_does_not_exist_and_each_one_of_the_process() -> None:
    named = set(NAME.findall(PAGE))
    assert {name for name in named if name not in METRICS} == set(PROCESS_METRICS)


def test_the_page_has_each_label_and_its_values() -> None:
    rows = by_name(table(PAGE, "| label | values |"))
    assert set(rows) == {label for spec in METRICS.values() for label in spec.labels}
    for label in ("action", "kind", "level", "phase", "result", "routes", "status"):
        assert VALUES[label] <= set(names_in(rows[label][0])), label


@pytest.mark.parametrize(("title", "query"), QUERIES, ids=[title for title, _ in QUERIES])
def test_a_query_names_only_metrics_labels_and_values_that_exist(title: str, query: str) -> None:
    assert faults_of(query) == [], title


def test_the_search_finds_a_wrong_name_a_wrong_label_and_a_wrong_value() -> None:
    assert faults_of("sum by (key) (rate(steadyhand_jobs_ended_total[5m]))") == ["key"]
    assert faults_of("steadyhand_run_seconds > 1") == ["steadyhand_run_seconds"]
    assert faults_of('steadyhand_jobs{key="k_1"}') == ["steadyhand_jobs.key"]
    assert faults_of('steadyhand_jobs{state="asleep"}') == ["state=asleep"]
    assert faults_of('steadyhand_jobs{state=~"queued|running", instance="a"}') == []


def test_names_follow_the_conventions_of_prometheus() -> None:
    for spec in METRICS.values():
        assert re.fullmatch(r"steadyhand_[a-z]+(_[a-z]+)*", spec.name)
        assert spec.name.endswith("_total") == (spec.type == "counter"), spec.name
        assert (spec.buckets != ()) == (spec.type == "histogram"), spec.name
        assert list(spec.buckets) == sorted(set(spec.buckets))
        assert spec.meaning.endswith(".")
        if spec.type == "histogram":
            assert spec.name.endswith("_seconds")


def test_the_rules_and_the_panels_have_what_their_readers_need() -> None:
    rules: list[dict[str, Any]] = yaml.safe_load((PROJECT / "deploy" / "alerts.yml").read_text("utf-8"))[
        "groups"
    ][0]["rules"]
    assert len({rule["alert"] for rule in rules}) == len(rules) >= 10
    for rule in rules:
        assert rule["labels"]["severity"] in ("critical", "warning", "info"), rule["alert"]
        assert rule["annotations"]["summary"].endswith("."), rule["alert"]
    panels = json.loads((PROJECT / "deploy" / "grafana-dashboard.json").read_text("utf-8"))["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in panels]
    assert len(set(places)) == len(places)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)

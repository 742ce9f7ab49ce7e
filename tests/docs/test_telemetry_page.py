"""The page of the traces has the spans and attributes of the code, and no other ones."""

import re
from typing import get_args

import pytest
from tests.docs.pages import by_name, names_in, table, text_of

from steadyhand.metrics.names import METRICS
from steadyhand.ports import PhaseName
from steadyhand.telemetry import names

PAGE = text_of("telemetry.md")
DOTTED = re.compile(r"`((?:gen_ai|steadyhand|error|http)\.[a-z_.]+)`")


def test_the_page_has_each_span_with_its_parent_its_attributes_and_its_meaning() -> None:
    rows = by_name(table(PAGE, "| span | kind | below | attributes | meaning |"))
    assert list(rows) == list(names.SPANS)
    for name, (kind, below, attributes, meaning) in rows.items():
        spec = names.SPANS[name]
        assert (kind, below.strip("`"), meaning) == (spec.kind, spec.parent, spec.meaning), name
        assert tuple(names_in(attributes)) == spec.attributes, name


def test_the_page_has_each_attribute_with_its_meaning_and_no_other() -> None:
    rows = by_name(table(PAGE, "| attribute | meaning |"))
    assert {name: meaning for name, (meaning,) in rows.items()} == dict(names.ATTRIBUTES)
    metrics = {metric.name for metric in names.GENAI_METRICS}
    assert set(DOTTED.findall(PAGE)) - metrics == set(names.ATTRIBUTES)


def test_each_attribute_belongs_to_a_span_or_a_link_and_each_phase_has_a_span() -> None:
    of_spans = {attribute for spec in names.SPANS.values() for attribute in spec.attributes}
    assert set(names.ATTRIBUTES) - of_spans == {names.LINK}
    assert of_spans <= set(names.ATTRIBUTES)
    assert set(names.PHASE_SPANS) == set(get_args(PhaseName))
    assert {spec.subject for spec in names.SPANS.values() if spec.subject} <= of_spans
    assert of_spans >= names.CONTENT_ATTRIBUTES


@pytest.mark.parametrize("metric", names.GENAI_METRICS, ids=lambda metric: metric.name)
def test_the_page_has_each_metric_of_the_conventions(metric: names.GenaiMetric) -> None:
    source, attributes = by_name(table(PAGE, "| metric | figures of | attributes |"))[metric.name]
    assert names_in(source) == [metric.source]
    expected = [each for pair in metric.attributes.items() for each in pair]
    assert names_in(attributes) == [*expected, *metric.labels.values()]
    assert set(metric.labels) == set(METRICS[metric.source].labels)

"""The known name that is most similar to a misspelt one."""

from steadyhand.suggest import closest_name


def test_the_most_similar_name_is_found_and_none_where_nothing_is_similar() -> None:
    assert closest_name("concurency", ("concurrency", "currency")) == "concurrency"
    assert closest_name("xyz", ("concurrency", "currency")) is None


def test_a_lower_cutoff_finds_names_that_differ_more() -> None:
    assert closest_name("timeout", ("idle_timeout_seconds",)) is None
    assert closest_name("timeout", ("idle_timeout_seconds",), cutoff=0.5) == "idle_timeout_seconds"

"""Flat names of functions in namespaces."""

import re

from steadyhand.api.openai.client_tools import flat_name


def test_a_flat_name_is_short_unique_and_the_same_each_time() -> None:
    assert flat_name("mcp__files", "view") == flat_name("mcp__files__", "view") == "mcp__files__view"
    long = "a" * 60
    names = {flat_name(long, "one"), flat_name(long, "two"), flat_name(long + "b", "one")}
    assert len(names) == 3
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{64}", name) for name in names)
    assert flat_name(long, "one") in names
    assert flat_name("a.b", "c.d") == "a_b__c_d"

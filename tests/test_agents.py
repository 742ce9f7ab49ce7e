import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadyhand.agents import (
    BUILT_IN_AGENTS,
    NAME_PATTERN,
    Agent,
    Catalog,
    Defaults,
    Workspace,
    parse_agent_name,
)
from steadyhand.errors import InvalidRequest


@pytest.mark.parametrize(
    "raw",
    [
        "issue-responder",
        ".claude/agents/issue-responder",
        ".claude/agents/issue-responder.md",
        "/abs/issue-responder.md",
    ],
)
def test_a_path_to_a_definition_means_its_last_part_without_the_ending(raw: str) -> None:
    assert parse_agent_name(raw) == "issue-responder"


@pytest.mark.parametrize(
    "raw",
    [
        "",
        ".",
        "..",
        "../",
        "a/..",
        "-x",
        ".hidden",
        "a b",
        "a\n",
        "a\x00",
        "é",
        "\N{FULLWIDTH LATIN SMALL LETTER A}",
        "a" * 65,
        ".md",
        "a;b",
        "a$",
    ],
)
def test_what_is_not_a_name_is_refused_at_the_agent_field(raw: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_agent_name(raw)
    assert caught.value.field_errors[0].pointer == "/agent"


@given(st.text(max_size=80))
def test_a_name_is_never_a_path_an_option_or_more_than_ascii(raw: str) -> None:
    try:
        name = parse_agent_name(raw)
    except InvalidRequest:
        return
    assert NAME_PATTERN.fullmatch(name)
    assert "/" not in name
    assert not name.startswith(("-", "."))
    assert name.isascii()


def test_an_agent_that_is_not_configured_stands_for_a_definition_of_its_name() -> None:
    catalogue = Catalog()
    assert catalogue.agent("claude") is BUILT_IN_AGENTS["claude"]
    assert catalogue.agent("else") == Agent("else", definition="else")


def test_a_workspace_that_is_not_configured_is_a_path_or_a_url() -> None:
    infra = Workspace("infra", "https://git.example.org/infra.git")
    catalogue = Catalog(workspaces={"infra": infra}, defaults=Defaults(workspace="infra"))
    assert catalogue.workspace("infra") is infra
    assert catalogue.workspace("/srv/repo") == Workspace("/srv/repo", repository="/srv/repo")
    assert catalogue.workspace(None).repository is None
    assert catalogue.default_workspace_name(Agent("a")) == "infra"
    assert catalogue.default_workspace_name(BUILT_IN_AGENTS["chat"]) is None

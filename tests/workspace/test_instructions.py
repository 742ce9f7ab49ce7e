import asyncio
from pathlib import Path

import pytest

from steadyhand.ports import Checkout
from steadyhand.testing.contracts.checkouts import DEFINITION, Repository, run_as_agent
from steadyhand.testing.contracts.samples import make_job
from steadyhand.workspace import GitCheckouts

SKILL = "---\nname: sum\ndescription: Adds.\nhooks:\n  Stop: [x]\n---\nAdd them.\n"


def with_instructions(repository: Repository) -> None:
    files = {
        "CLAUDE.md": "Root rules, see @docs/more.md\n",
        ".claude/CLAUDE.md": "More rules\n",
        ".claude/rules/style/tabs.md": "Use tabs.\n",
        ".claude/skills/sum/SKILL.md": SKILL,
        ".claude/agents/helper.md": DEFINITION,
        ".claude/settings.json": '{"hooks": {}}',
        ".claude/commands/go.md": "Go.\n",
    }
    for name, text in files.items():
        (repository.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (repository.folder / name).write_text(text, encoding="utf-8")
    repository.run("git add -A && git commit -qm Instructions")


def placed(checkouts: GitCheckouts, repository: Repository, **fields: object) -> Checkout:
    return asyncio.run(checkouts.prepare(make_job(), repository.workspace(**fields), 0))


def brought(place: Checkout) -> set[str]:
    assert place.config_dir is not None
    found = [path for path in place.config_dir.rglob("*") if path.is_file() or path.is_symlink()]
    return {str(path.relative_to(place.config_dir)) for path in found}


def test_instructions_come_along_as_text_and_settings_do_not(
    checkouts: GitCheckouts, repository: Repository
) -> None:
    with_instructions(repository)
    place = placed(checkouts, repository)
    assert brought(place) == {"CLAUDE.md", "rules/style/tabs.md", "skills/sum/SKILL.md", "agents/helper.md"}
    text = run_as_agent(place, "cat ../config/CLAUDE.md")
    assert text == "Root rules, see @docs/more.md\n\n\nMore rules\n"
    assert run_as_agent(place, "cat ../config/skills/sum/SKILL.md") == (
        "---\nname: sum\ndescription: Adds.\n---\nAdd them.\n"
    )
    assert "hooks" not in run_as_agent(place, "cat ../config/agents/helper.md")
    assert not place.full_trust


def test_without_trust_nothing_comes_along(checkouts: GitCheckouts, repository: Repository) -> None:
    with_instructions(repository)
    place = placed(checkouts, repository, trust="none")
    assert brought(place) == set()
    assert place.definitions == {}


def test_full_trust_holds_on_the_listed_refs_only(checkouts: GitCheckouts, repository: Repository) -> None:
    with_instructions(repository)
    repository.run("git branch other")
    trusted = placed(checkouts, repository, trust="full", trusted_refs=("main",), ref="main")
    other = placed(checkouts, repository, trust="full", trusted_refs=("main",), ref="other")
    pinned = placed(checkouts, repository, trust="full", trusted_refs=("main",), ref=repository.head())
    default = placed(checkouts, repository, trust="full", trusted_refs=("main",))
    assert trusted.full_trust
    assert "hooks" in trusted.definitions["helper"].text
    for place in (other, pinned, default):
        assert not place.full_trust
        assert "hooks" not in place.definitions["helper"].text


def test_a_jobs_own_ref_decides_its_trust(checkouts: GitCheckouts, repository: Repository) -> None:
    with_instructions(repository)
    workspace = repository.workspace(trust="full", trusted_refs=("main",), ref="main")
    place = asyncio.run(checkouts.prepare(make_job(ref="side"), workspace, 0))
    assert not place.full_trust


def test_a_symlink_in_place_of_instructions_is_not_followed(
    checkouts: GitCheckouts, repository: Repository, world_dir: Path
) -> None:
    (world_dir / "secret").write_text("secret\n", encoding="utf-8")
    repository.run(
        f"ln -s {world_dir}/secret CLAUDE.md && mkdir -p .claude/agents && ln -s /etc .claude/rules"
    )
    repository.run(f"ln -s {world_dir}/secret .claude/agents/x.md")
    repository.commit("x", "x")
    place = placed(checkouts, repository)
    assert brought(place) == set()
    assert place.definitions == {}


@pytest.mark.parametrize("name", [pytest.param("CLAUDE.md", marks=pytest.mark.long), ".claude/CLAUDE.md"])
def test_a_directory_in_place_of_a_main_file_brings_no_settings(
    checkouts: GitCheckouts, repository: Repository, name: str
) -> None:
    repository.commit(f"{name}/settings.json", '{"includeCoAuthoredBy": false}')
    repository.commit(f"{name}/rules/tabs.md", "Use tabs.\n")
    repository.commit(".claude/rules/spaces.md", "Use spaces.\n")
    place = placed(checkouts, repository)
    assert brought(place) == {"rules/spaces.md"}
    assert not place.full_trust


def test_what_is_too_large_too_much_or_no_text_is_left_out_with_a_note(
    checkouts: GitCheckouts, repository: Repository
) -> None:
    repository.commit("CLAUDE.md", "x" * (256 * 1024 + 1))
    for number in range(205):
        (repository.folder / ".claude" / "rules").mkdir(parents=True, exist_ok=True)
        (repository.folder / ".claude" / "rules" / f"r{number:03}.md").write_text("rule\n", encoding="utf-8")
    (repository.folder / ".claude" / "rules" / "r000.md").write_bytes(b"\xff\xfe\x00")
    repository.commit("x", "x")
    place = placed(checkouts, repository)
    assert [notice.code for notice in place.warnings] == ["instructions_cut"]
    assert "CLAUDE.md" in place.warnings[0].message
    assert "CLAUDE.md" not in brought(place)
    assert len(brought(place)) == 199


def test_the_operators_definitions_win_and_keep_all_their_keys(
    checkouts: GitCheckouts, repository: Repository, world_dir: Path
) -> None:
    with_instructions(repository)
    agents = world_dir / "data" / "agents"
    agents.mkdir()
    (agents / "helper.md").write_text(DEFINITION.replace("You help.", "By the operator."), encoding="utf-8")
    (agents / "extra.md").write_text("---\ndescription: d\n---\nExtra.\n", encoding="utf-8")
    (agents / "broken.md").write_bytes(b"---\n\xff---\n")
    place = placed(checkouts, repository)
    assert sorted(place.definitions) == ["extra", "helper"]
    assert place.definitions["helper"].origin == "data_dir"
    text = run_as_agent(place, "cat ../config/agents/helper.md")
    assert "By the operator." in text
    assert "hooks" in text
    assert asyncio.run(checkouts.agent_definitions(repository.workspace())) == place.definitions


def test_definitions_are_read_from_the_pinned_commit_not_from_the_work_tree(
    checkouts: GitCheckouts, repository: Repository
) -> None:
    with_instructions(repository)
    (repository.folder / ".claude" / "agents" / "draft.md").write_text(DEFINITION, encoding="utf-8")
    assert list(asyncio.run(checkouts.agent_definitions(repository.workspace()))) == ["helper"]

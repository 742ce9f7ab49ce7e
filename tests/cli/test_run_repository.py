"""Which state of a repository `run` works on: it is said, or its changes are taken along, or the remedy is named."""

import base64
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.cli.command_line import JOB_ID, CommandLine, ScriptedAnswer, ScriptedService, event_json, job_json

from steadyhand.cli import local_repository
from steadyhand.testing.example import make_repository

JOB = f"/v1/jobs/{JOB_ID}"
ENDED = event_json(9, "state.changed", **{"from": "running", "to": "completed", "outcome": "success"})


def git(folder: Path, *arguments: str) -> str:
    options = ["-c", "user.name=Ann", "-c", "user.email=ann@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", *options, *arguments], cwd=folder, check=True, capture_output=True, text=True, timeout=60
    ).stdout.strip()


@pytest.fixture
def shop(steadyhand: CommandLine, service: ScriptedService) -> Path:
    """A repository of one commit, in which the commands run, and a service that takes one job."""
    service.respond("POST", "/v1/jobs", ScriptedAnswer.of(job_json(state="queued", answer=None), 202))
    service.respond("GET", f"{JOB}/events", ScriptedAnswer.stream(ENDED))
    service.respond("GET", JOB, ScriptedAnswer.of(job_json()))
    repository = steadyhand.home / "shop"
    make_repository(repository)
    steadyhand.home = repository
    return repository


def sent(service: ScriptedService) -> dict[str, Any]:
    [body] = [asked.body for asked in service.requests if asked.method == "POST"]
    assert isinstance(body, dict)
    return body


def test_a_clean_repository_is_named_with_its_branch_and_commit(steadyhand: CommandLine, shop: Path) -> None:
    ran = steadyhand("run", "--repo", ".", "x")
    assert (
        f"Working on {shop}, main at {git(shop, 'rev-parse', '--short=12', 'HEAD')} (A small shop).\n"
        in ran.err
    )
    assert "Working on" not in steadyhand("run", "--quiet", "--repo", ".", "x").err
    assert "Working on" not in steadyhand("run", "--repo", "https://git.example.org/a.git", "x").err


def test_uncommitted_files_that_are_not_part_of_the_work_are_named(
    steadyhand: CommandLine, service: ScriptedService, shop: Path
) -> None:
    (shop / "README.md").write_text("changed\n")
    (shop / "new.txt").write_text("new\n")
    (shop / "__pycache__").mkdir()
    (shop / "__pycache__" / "ignored.pyc").write_text("x")
    for option in ((), ("--quiet",)):
        ran = steadyhand("run", *option, "--repo", ".", "x")
        assert (
            "without the uncommitted changes here: README.md, new.txt. `--with-changes` takes them along."
            in ran.err
        )
    assert all("uncommitted" not in asked.body for asked in service.requests if asked.method == "POST")
    (shop / "new.txt").rename(shop / "strange\x1b[2J.txt")
    assert "\x1b" not in steadyhand("run", "--repo", ".", "x").err


def test_a_detached_head_is_named(steadyhand: CommandLine, shop: Path) -> None:
    git(shop, "checkout", "-q", "--detach")
    commit = git(shop, "rev-parse", "--short=12", "HEAD")
    assert (
        f"{shop}, {commit} (HEAD is detached) (A small shop).\n" in steadyhand("run", "--repo", ".", "x").err
    )


def test_a_ref_is_what_is_worked_on_whatever_is_checked_out(steadyhand: CommandLine, shop: Path) -> None:
    (shop / "README.md").write_text("changed\n")
    ran = steadyhand("run", "--repo", ".", "--ref", "v1", "x")
    assert f"Working on v1 of {shop}, without the uncommitted changes here: README.md.\n" in ran.err
    ran = steadyhand("run", "--repo", ".", "--ref", "v1", "--with-changes", "x")
    assert ran.code == 2
    assert "cannot be used with --ref" in ran.err


@pytest.mark.parametrize(
    ("prepare", "reason"), [((), "is not in a git repository"), (("init", "-q"), "without a commit")]
)
def test_without_a_commit_nothing_is_sent_and_the_remedy_is_named(
    steadyhand: CommandLine, service: ScriptedService, prepare: tuple[str, ...], reason: str
) -> None:
    if prepare:
        git(steadyhand.home, *prepare)
    (steadyhand.home / "file.txt").write_text("x\n")
    for options in ((), ("--with-changes",)):
        ran = steadyhand("run", "--repo", ".", *options, "x")
        assert ran.code == 2
        assert reason in ran.err
        assert "git add . && git commit -m 'First commit'" in ran.err
    assert service.requests == []


def test_a_folder_of_a_repository_means_all_of_it(
    steadyhand: CommandLine, service: ScriptedService, shop: Path
) -> None:
    (shop / "src").mkdir()
    (shop / "src" / "code.py").write_text("1\n")
    (shop / "untracked").mkdir()
    git(shop, "add", "src")
    steadyhand.home = shop / "src"
    assert f"Working on {shop}, main at" in steadyhand("run", "--repo", ".", "x").err
    assert sent(service)["workspace"] == str(shop)
    steadyhand.home = shop / "untracked"
    ran = steadyhand("run", "--repo", ".", "x")
    assert ran.code == 2
    assert f"is not part of the repository around it, {shop}" in ran.err


def test_a_bare_repository_has_nothing_to_take_along(
    steadyhand: CommandLine, service: ScriptedService, shop: Path
) -> None:
    git(shop, "clone", "-q", "--bare", ".", "../bare.git")
    ran = steadyhand("run", "--repo", "../bare.git", "--with-changes", "x")
    assert f"{shop.parent / 'bare.git'}, main at" in ran.err
    assert "there are no changes to take along" in ran.err
    assert "uncommitted" not in sent(service)


def test_the_changes_are_a_commit_on_head_and_the_repository_stays_as_it_is(
    steadyhand: CommandLine, service: ScriptedService, shop: Path
) -> None:
    (shop / "shop.py").write_text("staged = 1\n")
    git(shop, "add", "shop.py")
    (shop / "shop.py").write_text("staged = 1\nnot_staged = 2\n")
    (shop / "test_shop.py").unlink()
    (shop / "README.md").chmod(0o755)
    (shop / "data.bin").write_bytes(bytes(range(256)))
    (shop / "link").symlink_to("shop.py")
    (shop / "__pycache__").mkdir()
    (shop / "__pycache__" / "secret.pyc").write_text("never\n")
    before = git(shop, "status", "--porcelain"), git(shop, "for-each-ref"), git(shop, "diff")
    ran = steadyhand(
        "run", "--repo", ".", "--with-changes", "x", GIT_DIR="/nonexistent", GIT_INDEX_FILE="/none"
    )
    assert ran.code == 0, ran.err
    assert "with 5 uncommitted files:\n" in ran.err
    assert {"  M shop.py", "  D test_shop.py", "  M README.md", "  A data.bin", "  A link"} <= set(
        ran.err.splitlines()
    )
    assert (git(shop, "status", "--porcelain"), git(shop, "for-each-ref"), git(shop, "diff")) == before
    changes = sent(service)["uncommitted"]
    assert (
        changes["base"] == git(shop, "rev-parse", "HEAD") == git(shop, "rev-parse", f"{changes['commit']}^")
    )
    assert "ref" not in sent(service)
    shown = git(shop, "diff", "--raw", "--abbrev=4", "--no-renames", "HEAD", changes["commit"]).splitlines()
    assert [line.split("\t")[1] + " " + line.split()[1] + line.split()[4] for line in shown] == [
        "README.md 100755M", "data.bin 100644A", "link 120000A", "shop.py 100644M", "test_shop.py 000000D",
    ]  # fmt: skip
    assert git(shop, "show", f"{changes['commit']}:shop.py") == "staged = 1\nnot_staged = 2"
    assert base64.b64decode(changes["pack"])[:4] == b"PACK"
    assert steadyhand("run", "--repo", ".", "--with-changes", "x").code == 0
    again = [asked.body["uncommitted"] for asked in service.requests if asked.method == "POST"]
    assert again == [changes, changes], "the same changes are the same commit"


def test_changes_beyond_the_bounds_or_with_conflicts_are_refused_with_their_remedy(
    steadyhand: CommandLine, service: ScriptedService, shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal(expected: str) -> None:
        ran = steadyhand("run", "--repo", ".", "--with-changes", "x")
        assert ran.code == 2
        assert expected in " ".join(ran.err.split())

    (shop / "big.bin").write_bytes(os.urandom(200_000))
    with monkeypatch.context() as bounds:
        bounds.setattr(local_repository, "MAX_PACK_BYTES", 100_000)
        refusal("git pack-objects printed more than")
        bounds.setattr(local_repository, "MAX_FILE_BYTES", 100_000)
        refusal("the largest is big.bin (0.2 MiB). Commit them, or list in .gitignore")
        bounds.setattr(local_repository, "MAX_FILES", 0)
        refusal("The changes are 1 files; at most 0 can be taken along.")
    (shop / "big.bin").unlink()
    git(shop, "checkout", "-q", "-b", "other")
    (shop / "README.md").write_text("theirs\n")
    git(shop, "commit", "-qam", "theirs")
    git(shop, "checkout", "-q", "main")
    (shop / "README.md").write_text("ours\n")
    git(shop, "commit", "-qam", "ours")
    with pytest.raises(subprocess.CalledProcessError):
        git(shop, "merge", "other")
    refusal("README.md has conflicts")
    assert service.requests == []


def test_repositories_inside_it_are_named_and_not_taken_along(steadyhand: CommandLine, shop: Path) -> None:
    make_repository(shop / "vendor" / "inner")
    ran = steadyhand("run", "--repo", ".", "--with-changes", "x")
    assert "are not taken along: vendor/inner/." in ran.err
    assert "there are no changes to take along" in ran.err


def test_for_a_workspace_of_the_service_unpushed_commits_go_along(
    steadyhand: CommandLine, service: ScriptedService, shop: Path
) -> None:
    (shop / "new.txt").write_text("new\n")
    ran = steadyhand("run", "--workspace", "shop", "--with-changes", "x")
    assert ran.code == 2
    assert "has no remote-tracking branch" in ran.err
    git(shop, "clone", "-q", "--bare", ".", "../origin.git")
    git(shop, "remote", "add", "origin", "../origin.git")
    git(shop, "fetch", "-q", "origin")
    pushed = git(shop, "rev-parse", "HEAD")
    git(shop, "commit", "-q", "--allow-empty", "-m", "Not pushed")
    ran = steadyhand("run", "--workspace", "shop", "--with-changes", "x")
    assert ran.code == 0, ran.err
    assert "(Not pushed), with 1 unpushed commit and 1 uncommitted file:" in ran.err
    body = sent(service)
    assert body["workspace"] == "shop"
    assert body["uncommitted"]["base"] == pushed
    assert git(shop, "rev-list", "--count", f"{pushed}..{body['uncommitted']['commit']}") == "2"


def test_without_changes_a_workspace_of_the_service_works_on_the_commit_here(
    steadyhand: CommandLine, service: ScriptedService, shop: Path
) -> None:
    git(shop, "clone", "-q", "--bare", ".", "../origin.git")
    git(shop, "remote", "add", "origin", "../origin.git")
    git(shop, "fetch", "-q", "origin")
    assert steadyhand("run", "--workspace", "shop", "--with-changes", "x").code == 0
    assert sent(service)["ref"] == git(shop, "rev-parse", "HEAD")
    assert "uncommitted" not in sent(service)


def test_the_agent_works_on_the_changes_and_its_diff_applies_on_top_of_them(
    live: CommandLine, world_dir: Path
) -> None:
    repository = world_dir / "shop"
    make_repository(repository)
    live.home = repository
    (repository / "README.md").write_text("mine\n")
    (repository / "notes.txt").write_text("untracked\n")
    (repository / "__pycache__").mkdir()
    (repository / "__pycache__" / "own.pyc").write_text("ignored\n")
    prompt = '[[standin: run="cat README.md notes.txt; ls -A; git log --format=%s" write=notes.txt:hello]]'
    ran = live("run", "--repo", ".", "--with-changes", "--json", prompt)
    assert ran.code == 0, ran.err
    job = json.loads(ran.out)
    for line in ("mine", "untracked", "Uncommitted changes", "A small shop"):
        assert line in ran.err
    assert "own.pyc" not in ran.err
    assert "__pycache__" not in ran.err.split("README.md\n", 1)[1]
    assert job["changes"]["files"] == 1
    assert job["publish"] == "none"
    patch = live("diff", job["id"]).out
    subprocess.run(["git", "apply", "-"], cwd=repository, input=patch.encode(), check=True, timeout=60)
    assert (repository / "notes.txt").read_text().strip() == "hello"
    assert (repository / "README.md").read_text() == "mine\n"
    assert json.loads(live("retry", job["id"], "--json").out)["id"] == job["id"]
    assert json.loads(live("wait", job["id"], "--json").out)["state"] == "completed"
    assert live("delete", job["id"]).code == 0

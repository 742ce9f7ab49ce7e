"""A repository that was made to run something: eleven ways, against every git call that the service makes.

One job taints everything it can write, in the sandbox. Then the service harvests, prepares the next job of the same
workspace, publishes, and reads the definitions; in a directory in place the next job's pull meets what is left. What
the taint runs leaves a mark in a folder that is not seen inside: a mark that comes to be was made outside.
"""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from steadyhand.testing.service import MakeService, Service, git
from steadyhand.testing.shell import prompt

TAINTS = {
    "fsmonitor": "git config core.fsmonitor $HOOK",
    "include": "printf '[core]\\n fsmonitor = %s\\n' $HOOK > .git/inc; git config include.path inc",
    "external diff": (
        "git config diff.external $HOOK; git config diff.evil.textconv $HOOK; echo '* diff=evil' > .gitattributes"
    ),
    "filter": (
        "git config filter.evil.clean $HOOK; git config filter.evil.smudge $HOOK; git config filter.evil.process $HOOK;"
        " echo '* filter=evil' > .gitattributes"
    ),
    "hooks": (
        "mkdir -p .git/hooks hooks; for h in pre-commit post-commit post-index-change reference-transaction"
        " post-checkout post-merge pre-rebase post-rewrite pre-push update post-update; do"
        " cp .git/evil .git/hooks/$h; cp .git/evil hooks/$h; done; git config core.hooksPath hooks"
    ),
    "gpg": "git config gpg.program $HOOK; git config commit.gpgSign true; git config push.gpgSign if-asked",
    "ssh": "git config core.sshCommand $HOOK; git config remote.origin.url ssh://localhost/x",
    "uploadpack": (
        "git config uploadpack.packObjectsHook $HOOK; git config remote.origin.uploadpack $HOOK;"
        " git config remote.origin.receivepack $HOOK"
    ),
    "credential helper": 'git config credential.helper "!$HOOK"; git config core.askPass $HOOK',
    "alias": (
        'for a in add commit status bundle diff log pull fetch rebase show rev-parse; do git config alias.$a "!$HOOK";'
        " done; git config core.editor $HOOK; git config core.pager $HOOK; git config sequence.editor $HOOK"
    ),
    "alternate refs": (
        "git config core.alternateRefsCommand $HOOK; git config core.gitProxy $HOOK;"
        " git config merge.evil.driver $HOOK; echo '* merge=evil' > .gitattributes;"
        " git config protocol.ext.allow always;"
        ' git config url."ext::$HOOK".insteadOf /'
    ),
}


@pytest.fixture(scope="module")
def marks() -> Iterator[Path]:
    """A folder in which anybody may leave a mark."""
    folder = Path(tempfile.mkdtemp(prefix="sh-mk-", dir="/tmp"))
    folder.chmod(0o777)
    program = Path(f"{folder}.evil")
    program.write_text(evil(folder), encoding="utf-8")
    program.chmod(0o755)
    yield folder
    program.unlink()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def service(make_service_in: MakeService) -> Iterator[Service]:
    made = make_service_in()
    remote = made.root / "remote.git"
    git(made.root, "clone", "-q", "--bare", str(made.root / "workspace"), str(remote))
    direct = made.root / "direct"
    git(made.root, "clone", "-q", str(remote), str(direct))
    shutil.copytree(direct, made.root / "pristine")
    git(direct, "config", "user.name", "Owner")
    git(direct, "config", "user.email", "owner@example.org")
    made.give(direct)
    made.config_path.write_text(
        f'[workspaces.published]\nrepository = "{remote}"\npublish = "branch"\n'
        f'[workspaces.direct]\nrepository = "{direct}"\nmode = "in_place"\n',
        encoding="utf-8",
    )
    with made:
        yield made


def evil(marks: Path) -> str:
    """Give a program that leaves a mark."""
    return f"#!/bin/sh\ntouch {marks}/mark 2>/dev/null\ncat 2>/dev/null\n"


def tainting(marks: Path, taint: str) -> str:
    """Give a prompt that taints the repository it is in, and changes a file so that there is work to keep.

    The program that the configuration names lies on this machine where everybody may run it, as if the agent knew of
    one; hooks are files of the repository.
    """
    made = evil(marks).replace("\n", "\\n")
    return prompt(
        f"printf '{made}' > .git/evil; chmod +x .git/evil",
        f"HOOK={marks}.evil; echo x > x.txt; git add x.txt; ({TAINTS[taint]}) 2>&1",
        "echo more >> greeting.txt; echo done",
    )


def test_the_mark_is_made_by_a_taint_that_runs_outside(service: Service, marks: Path) -> None:
    """The probe: the same taint, run by a careless `git status` on this machine, leaves its mark."""
    folder = service.root / "careless"
    git(service.root, "clone", "-q", str(service.root / "remote.git"), str(folder))
    git(folder, "config", "core.fsmonitor", f"{marks}.evil")
    git(folder, "status")
    assert (marks / "mark").exists()
    (marks / "mark").unlink()


@pytest.mark.parametrize("taint", TAINTS)
def test_a_taint_runs_nothing_outside_in_harvest_publish_and_the_next_job(
    service: Service, marks: Path, taint: str
) -> None:
    job = service.run(tainting(marks, taint), workspace="published")
    assert (job["state"], job["answer"]) == ("completed", "done"), job["error"]
    assert job["changes"]["published"], job["warnings"]
    diff = service.http.get(f"/v1/jobs/{job['id']}/diff").text
    assert "+more" in diff
    service.http.get("/v1/agents")  # the definitions of each workspace
    following = service.run(
        prompt("git config --get core.fsmonitor; cat greeting.txt"), workspace="published"
    )
    assert (following["state"], following["answer"]) == ("completed", "hello")
    assert list(marks.iterdir()) == []


@pytest.mark.parametrize("taint", TAINTS)
def test_a_taint_in_a_directory_in_place_runs_nothing_outside(
    service: Service, marks: Path, taint: str
) -> None:
    job = service.run(tainting(marks, taint), workspace="direct")
    assert job["state"] == "completed", job["error"]
    # The pull, the run and the diff of the next job meet what this one left.
    service.run(prompt("echo next"), workspace="direct")
    service.http.get("/v1/agents")
    assert list(marks.iterdir()) == []
    folder = service.root / "direct"
    shutil.rmtree(folder)
    shutil.copytree(service.root / "pristine", folder)
    service.give(folder)

"""What a commit only points to is found, named in warnings, and never trusted."""

import asyncio

import pytest
from tests.workspace.pointers import COMMIT, add_lfs_file, add_submodule, lfs_pointer, point_elsewhere

from steadyhand.job_warnings import WarningCode
from steadyhand.testing.contracts.checkouts import Repository
from steadyhand.testing.contracts.samples import make_job
from steadyhand.workspace import GitCheckouts
from steadyhand.workspace.external_content import (
    ExternalContent,
    LfsFile,
    Submodule,
    find_external_content,
    list_names,
)


def content_of(repository: Repository, commit: str = "HEAD") -> ExternalContent:
    return asyncio.run(find_external_content(repository.folder, repository.head(commit)))


def commit_staged(repository: Repository) -> None:
    repository.run("git commit -qm x")


def test_a_job_is_warned_of_submodules_and_lfs_files_that_are_not_there(
    repository: Repository, checkouts: GitCheckouts
) -> None:
    point_elsewhere(repository)

    async def scene() -> None:
        place = await checkouts.prepare(make_job(), repository.workspace(), 0)
        assert [(each.code, each.message) for each in place.warnings] == [
            (WarningCode.SUBMODULES_EMPTY, "The submodules are empty folders: libs/shared."),
            (
                WarningCode.LFS_POINTERS,
                "Files of Git LFS are pointers without their content: data/model.bin.",
            ),
        ]
        assert list((place.directory / "libs/shared").iterdir()) == []
        before = await checkouts.prepare(make_job(ref="v1"), repository.workspace(), 1)
        assert before.warnings == ()

    asyncio.run(scene())


def test_pointers_are_those_that_the_attributes_of_the_commit_name(repository: Repository) -> None:
    (repository.folder / ".gitattributes").write_text("*.bin filter=lfs\n/plain/*.bin -filter\n")
    (repository.folder / "sub").mkdir()
    (repository.folder / "sub" / ".gitattributes").write_text("*.dat filter=lfs\n")
    repository.run("git add .gitattributes sub")
    for path in ("a.bin", "plain/b.bin", "c.dat", "sub/d.dat", "sub/e \u2028.bin"):
        add_lfs_file(repository, path, path.encode())
    (repository.folder / "no-pointer.bin").write_text(lfs_pointer(b"x") + "more\n")
    (repository.folder / "real.bin").write_bytes(bytes(5000))
    repository.run("git -c filter.lfs.clean=cat add no-pointer.bin real.bin")
    commit_staged(repository)
    (repository.folder / ".gitattributes").write_text("")  # the work tree does not count
    found = content_of(repository).lfs_files
    assert [each.path for each in found] == ["a.bin", "sub/d.dat", "sub/e \u2028.bin"]
    assert found[0] == LfsFile("a.bin", lfs_pointer(b"a.bin").split("sha256:")[1][:64], 5)


@pytest.mark.parametrize(
    "script",
    [
        "rm .gitmodules; git rm -q --cached .gitmodules",
        "echo '[submodule' > .gitmodules; git add .gitmodules",
        "ln -sf /etc/passwd .gitmodules; git add .gitmodules",
        "printf '[include]\\npath = /etc/passwd\\n[submodule \"x\"]\\npath = libs\\n' > .gitmodules; git add .gitmo*",
        "head -c 2000000 /dev/zero | tr '\\0' '#' > .gitmodules; git add .gitmodules",
    ],
)
def test_a_submodule_without_a_valid_entry_has_no_url(repository: Repository, script: str) -> None:
    add_submodule(repository, "libs", "https://git.example.org/x.git")
    commit_staged(repository)
    assert content_of(repository).submodules == (
        Submodule("libs", COMMIT, "libs", "https://git.example.org/x.git"),
    )
    repository.run(script)
    commit_staged(repository)
    assert content_of(repository).submodules == (Submodule("libs", COMMIT),)


def test_names_of_a_repository_stand_in_a_warning_on_one_line() -> None:
    mark = "\N{REPLACEMENT CHARACTER}"
    assert list_names(["a", "b\nc\x1b[2J\udcff"]) == f"a, b{mark}c{mark}[2J{mark}"
    assert list_names([f"{n}" for n in range(25)]).endswith(", 19 and 5 more")
    assert len(list_names(["x" * 5000])) == 200

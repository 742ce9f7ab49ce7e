"""Commits that only point to a part of their content: submodules, and files of Git LFS."""

import hashlib

from steadyhand.testing.contracts.checkouts import Repository

COMMIT = "5" * 40
"""The commit of a submodule that nobody has."""
MODEL = b"the model"
"""The content of the file of Git LFS."""


def lfs_pointer(content: bytes) -> str:
    """Return the pointer file of this content."""
    digest = hashlib.sha256(content).hexdigest()
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(content)}\n"


def add_submodule(repository: Repository, path: str, url: str, commit: str = COMMIT) -> None:
    """Stage a submodule with its entry in `.gitmodules`; nothing is fetched."""
    name = path.rpartition("/")[2]
    repository.run(
        f"git config -f .gitmodules 'submodule.{name}.path' '{path}';"
        f" git config -f .gitmodules 'submodule.{name}.url' '{url}';"
        f" git add .gitmodules; git update-index --add --cacheinfo 160000,{commit},'{path}'"
    )


def add_lfs_file(repository: Repository, path: str, content: bytes) -> None:
    """Stage a pointer file; no filter runs."""
    file = repository.folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(lfs_pointer(content), "ascii")
    repository.run(f"git -c filter.lfs.clean=cat -c filter.lfs.required=false add '{path}'")


def point_elsewhere(repository: Repository) -> str:
    """Commit a submodule and a file of Git LFS; return the commit."""
    add_submodule(repository, "libs/shared", "https://git.example.org/shared.git")
    (repository.folder / ".gitattributes").write_text("*.bin filter=lfs -text\n")
    repository.run("git add .gitattributes")
    add_lfs_file(repository, "data/model.bin", MODEL)
    repository.run(
        "git -c user.name=Ann -c user.email=ann@example.org commit -qm 'Point elsewhere';"
        " git -c filter.lfs.smudge= reset -q --hard; mkdir -p libs/shared"
    )
    return repository.head()

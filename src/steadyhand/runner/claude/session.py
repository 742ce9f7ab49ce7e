"""The session of a run: its id, its directory, and its file in the CLI's config directory."""

import os
import re
import uuid
from pathlib import Path

from steadyhand.ports import AgentPaths, Checkout, RunSpec, Sandbox
from steadyhand.runner.claude.install import CONFIG_DIR_NAME

PROJECTS_DIR = "projects"
"""The folder with the sessions in the config directory."""


def default_config_dir(home: Path) -> Path:
    """Return the config directory that the CLI uses in a home if it gets no other."""
    return home / CONFIG_DIR_NAME


def config_dir_of(checkout: Checkout) -> Path:
    """Return the CLI's config directory in a run with this checkout."""
    return checkout.config_dir or default_config_dir(checkout.home)


def project_folder_name(directory: str) -> str:
    """Return the name of the folder with the sessions of a directory; the path must have no symbolic links."""
    return re.sub(r"[^A-Za-z0-9]", "-", directory)


def session_file(config: Path, directory: str, session: str) -> Path:
    """Return the path of the file of a session of a directory."""
    return config / PROJECTS_DIR / project_folder_name(directory) / f"{session}.jsonl"


def move_sessions(config: Path, old_directory: Path, new_directory: Path) -> None:
    """Move the sessions of a directory to where the CLI looks for those of another one. A symlink is not moved."""
    old, new = (
        config / PROJECTS_DIR / project_folder_name(str(directory.resolve()))
        for directory in (old_directory, new_directory)
    )
    if old.is_dir() and not old.is_symlink():
        old.rename(new)


def redirect_sessions(config: Path, old_directory: Path, new_directory: Path, owner: int | None) -> None:
    """Make the sessions of a directory's old name those of its new one, by a link beside them."""
    projects = config / PROJECTS_DIR
    old, new = (project_folder_name(str(each)) for each in (old_directory, new_directory))
    for folder in (projects, projects / new):
        if (projects / old).is_dir() and folder.name == new:
            (projects / old).rename(folder)
        elif not folder.is_dir():
            folder.mkdir(mode=0o700)
            if owner is not None:
                os.chown(folder, owner, owner)
    (projects / old).symlink_to(new)


def restore_sessions(config: Path, old_directory: Path, new_directory: Path) -> None:
    """Undo `redirect_sessions`: the sessions are those of the old name again."""
    projects = config / PROJECTS_DIR
    old, new = (projects / project_folder_name(str(each)) for each in (old_directory, new_directory))
    if old.is_symlink():
        old.unlink()
        new.rename(old)


def session_id_for(spec: RunSpec) -> str:
    """Return the id of the run's session: the job's if it is a UUID, as the CLI accepts no other, else a new one."""
    try:
        return str(uuid.UUID(spec.job.session_id or ""))
    except ValueError:
        return str(uuid.uuid4())


def session_directory(view: AgentPaths, sandbox: Sandbox) -> str:
    """Return the directory that the CLI names a session's folder after.

    The CLI resolves symlinks first. Inside a sandbox the directory has none.
    """
    return str(view.directory.resolve() if sandbox.level == "none" else view.directory)


def resumes_session(spec: RunSpec, sandbox: Sandbox, session: str) -> bool:
    """Return True if the run continues a session that an earlier run left on disk."""
    if spec.job.begin != "resume":
        return False
    directory = session_directory(sandbox.agent_paths(spec.checkout), sandbox)
    return session_file(config_dir_of(spec.checkout), directory, session).is_file()

"""The session of a run: its id, its directory, and its file in the CLI's config directory."""

import uuid

from steadyhand.claude_sessions import session_file
from steadyhand.ports import AgentPaths, RunSpec, Sandbox


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
    config = spec.checkout.config_dir or spec.checkout.home / ".claude"
    directory = session_directory(sandbox.agent_paths(spec.checkout), sandbox)
    return session_file(config, directory, session).is_file()

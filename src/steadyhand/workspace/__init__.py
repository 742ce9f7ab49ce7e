"""Repositories: mirrors, checkouts and the harvest of a job's work."""

from steadyhand.workspace.checkout import GitCheckouts
from steadyhand.workspace.git import GitSettings

__all__ = ["GitCheckouts", "GitSettings"]

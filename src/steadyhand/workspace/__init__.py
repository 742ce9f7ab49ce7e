"""Repositories: mirrors, checkouts, what a job did to them, and the boundary around an agent."""

from steadyhand.workspace.checkout import GitCheckouts
from steadyhand.workspace.git import GitSettings

__all__ = ["GitCheckouts", "GitSettings"]

"""The limits of the files of a harvest."""

from steadyhand.workspace.git import MIB

FILE_BYTES = 64 * MIB
"""The size limit of one file."""
TOTAL_BYTES = 256 * MIB
"""The size limit of all changed files together."""

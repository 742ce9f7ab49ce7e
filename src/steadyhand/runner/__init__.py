"""Runs agents: `process` starts and ends any agent's processes, `claude` speaks the protocol of the CLI."""

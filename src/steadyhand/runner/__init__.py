"""Drives agent processes: `stream` speaks the CLI's protocol, `plain` is the classic command line."""

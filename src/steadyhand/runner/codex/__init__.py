"""Drives Codex by its headless mode, `codex exec --json`."""

"""The routes of the earlier service, kept for its callers."""

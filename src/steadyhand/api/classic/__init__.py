"""The routes of the earlier service, for its callers."""

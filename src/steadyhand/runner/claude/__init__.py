"""The runner for the claude command line."""

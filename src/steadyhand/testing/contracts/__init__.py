"""What every adapter of a port must do, as classes of tests: subclass one, say how to open yours, and run pytest."""

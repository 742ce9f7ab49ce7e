"""Tests of every adapter of a port, as classes: subclass one, open your adapter in `open`, and run pytest."""

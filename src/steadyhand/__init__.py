"""Steadyhand runs headless coding agents as a dependable service."""

__version__ = "0.1.0"

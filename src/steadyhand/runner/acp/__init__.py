"""Drives agents that speak the Agent Client Protocol on stdin and stdout."""

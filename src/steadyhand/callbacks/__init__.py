"""Callbacks: tells receivers of the events of jobs, at addresses that are checked."""

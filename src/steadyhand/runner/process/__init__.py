"""Agent processes: start, supervise, read and kill them. Knows no agent's command line."""

"""The sandbox around an agent: bubblewrap arguments, system call filter and /etc."""

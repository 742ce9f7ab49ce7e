"""The proxy from sandboxes to the hosts that an agent may reach."""

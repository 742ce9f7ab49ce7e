"""The only door out of a sealed run: a socket to the model that adds the real key, and a proxy to listed hosts."""

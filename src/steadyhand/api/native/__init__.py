"""The routes of the service's own API, below /v1."""

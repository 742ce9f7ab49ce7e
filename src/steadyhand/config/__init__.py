"""The only reader of the environment: `settings` for the service, `client` for the command line."""

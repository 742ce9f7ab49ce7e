"""The reverse proxy to model providers: credentials, metering and rate limits."""

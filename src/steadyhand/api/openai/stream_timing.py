"""Times of the streams of the OpenAI routes. Read them through this module, so that a test can change them."""

OPEN_TIMEOUT_SECONDS = 5.0
"""How long a stream waits for its first text, so that a run that fails at once is an error and no stream."""
KEEPALIVE_SECONDS = 8.0
"""The longest silence on a stream; some clients and proxies give up after 10 seconds."""

"""Times of the streams of the OpenAI routes. Read them through this module, so that a test can change them."""

OPEN_TIMEOUT_SECONDS = 5.0
"""The time a stream waits for its first text, so that a run that fails at once is an error instead of a stream."""
KEEPALIVE_SECONDS = 8.0
"""The longest silence on a stream; some clients and proxies give up after 10 seconds."""

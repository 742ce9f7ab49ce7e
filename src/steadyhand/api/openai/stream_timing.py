"""Times of the streams of the OpenAI routes. Read them through this module, so that a test can change them."""

ACCEPTED_COMMENT = b": accepted\n\n"
"""The first bytes of a stream, sent at once: some clients and proxies wait for them only for a few seconds."""
KEEPALIVE_SECONDS = 8.0
"""The longest silence on a stream; some clients and proxies give up after 10 seconds."""

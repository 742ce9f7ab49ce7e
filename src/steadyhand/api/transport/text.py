"""Text in the form of responses."""


def one_line(text: str, limit: int = 500) -> str:
    """Return a text as one line of at most `limit` characters."""
    return " ".join(text.split())[:limit]

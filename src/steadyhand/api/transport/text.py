"""Text as responses show it."""


def one_line(text: str, limit: int = 500) -> str:
    """Give a text as one line of at most `limit` characters."""
    return " ".join(text.split())[:limit]

"""A browser without a screen: it keeps cookies, reads the token of forms and follows no redirect by itself."""

import re
from html.parser import HTMLParser
from types import TracebackType
from typing import Self

import httpx2
from tests.api.api_service import ADMIN, RunningService

_CSRF = re.compile(r'name="csrf" value="([^"]+)"')
_NONCE = re.compile(r"script-src 'nonce-([\w-]+)'")


class PageClient:
    """One browser."""

    def __init__(self, service: RunningService) -> None:
        self.http = service.client(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.http.close()

    def sign_in(self, key: str = ADMIN) -> None:
        """Sign in with a key."""
        answer = self.http.post("/ui/sign-in", data={"key": key, "next": "/"})
        assert answer.status_code == 303, answer.text

    def get(self, path: str, **headers: str) -> httpx2.Response:
        """Load a page and see that it has its headers."""
        answer = self.http.get(path, headers=headers)
        check_headers(answer)
        return answer

    def csrf(self) -> str:
        """Return the token of this session's forms."""
        found = _CSRF.search(self.get("/").text)
        assert found is not None
        return found[1]

    def send(self, path: str, **fields: str) -> httpx2.Response:
        """Send a form with the token of the session."""
        answer = self.http.post(path, data={"csrf": self.csrf(), **fields})
        check_headers(answer)
        return answer


def check_headers(answer: httpx2.Response) -> None:
    """See that a response of the page forbids all that it does not need."""
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-frame-options"] == "DENY"
    if answer.headers.get("content-type", "").startswith("text/html"):
        nonce = _NONCE.search(policy)
        assert nonce is not None
        assert set(re.findall(r'nonce="([^"]*)"', answer.text)) <= {nonce[1]}
        markup = parsed(answer.text)
        assert all("src" in attributes for tag, attributes in markup.elements if tag == "script")
        assert "style" not in {tag for tag, _ in markup.elements}
        for name, value in markup.attributes:
            assert name != "style"
            assert not name.startswith("on")
            assert not (name in ("href", "action", "src") and re.match(r"\s*(javascript|data):", value or ""))


class Markup(HTMLParser):
    """Collects the elements of HTML."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []

    @property
    def tags(self) -> set[str]:
        return {tag for tag, _ in self.elements}

    @property
    def attributes(self) -> set[tuple[str, str | None]]:
        return {each for _, attributes in self.elements for each in attributes.items()}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))


def parsed(text: str) -> Markup:
    """Parse HTML."""
    found = Markup()
    found.feed(text)
    return found

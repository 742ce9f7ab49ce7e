"""Addresses in files of a repository: which are fetched from, and which are refused for which reason."""

import pytest

from steadyhand.workspace.remote_hosts import RemoteHosts, UrlRefused, parse_url, resolve_relative
from steadyhand.workspace.repository_source import parse_source


@pytest.mark.parametrize(
    ("base", "url", "resolved"),
    [
        ("https://h/org/main.git", "../lib.git", "https://h/org/lib.git"),
        ("https://h/org/main.git/", "../../other/./lib.git", "https://h/other/./lib.git"),
        ("https://h/org/main", "./lib", "https://h/org/main/lib"),
        ("git@h:org/main.git", "../lib.git", "git@h:org/lib.git"),
        ("git@h:main.git", "../lib.git", "git@h:lib.git"),
        ("ssh://git@h:22/org/main.git", "../../x/y.git", "ssh://git@h:22/x/y.git"),
        ("/srv/main", "../lib", "/srv/lib"),
        ("https://h/a.git", "https://other/b.git", "https://other/b.git"),
    ],
)
def test_a_relative_address_is_resolved_as_git_does(base: str, url: str, resolved: str) -> None:
    assert resolve_relative(base, url) == resolved


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("https://h/org/main.git", "../../../evil/x.git"),
        ("https://h/main.git", "../../evil.git"),
        ("git@h:main.git", "../../evil.git"),
    ],
)
def test_a_relative_address_never_leads_to_another_host(base: str, url: str) -> None:
    with pytest.raises(UrlRefused, match="out of the repository's host"):
        resolve_relative(base, url)


@pytest.mark.parametrize(
    "url",
    [
        "", "-oProxyCommand=x", "ext::sh -c id", "https://h/a b", "https://h/a\nb", "https://-h/x", "https://h/-x",
        "ssh://-oProxyCommand=id/x", "ssh://h/-x", "git@-oProxyCommand=x:y", "ssh://-u@h/x", "https://h", "https:///x",
        "https://h:99999/x", "https://h\\@evil/x", "https://h/x?y", "https://h/x#y", "https://h\u2028/x",
        "fd::17/foo", "http://127.0.0.1/x", "https://[::1]/x", "https://h/" + "x" * 5000,
    ],
)  # fmt: skip
def test_an_address_that_is_no_plain_one_is_refused(url: str) -> None:
    with pytest.raises(UrlRefused):
        parse_url(url)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("/etc", "a path on this machine"),
        ("../x", "a path on this machine"),
        ("file:///etc", "not file"),
        ("git://h/x", "not git"),
        ("http://h/x", "not http"),
        ("http://169.254.169.254:80/x", "not http"),
    ],
)
def test_only_https_and_ssh_are_fetched_from(url: str, reason: str) -> None:
    with pytest.raises(UrlRefused, match=reason):
        parse_url(url)


def test_the_repositorys_own_host_is_allowed_and_others_if_they_are_listed() -> None:
    hosts = RemoteHosts(
        parse_source("git@git.example.org:org/main.git"), ("github.com", "other.example.org:8443")
    )
    for url, checked in {
        "https://git.example.org/a.git": "https://git.example.org/a.git",
        "git@GIT.example.org:a.git": "ssh://git@git.example.org/a.git",
        "https://user:secret@github.com/a.git": "https://github.com/a.git",
        "https://other.example.org:8443/a": "https://other.example.org:8443/a",
    }.items():
        assert hosts.check(url).url == checked
    for url, host in {
        "https://git.example.org:8443/a": "git.example.org:8443",
        "https://evil.example.org/a": "evil.example.org",
        "https://github.com.evil.org/a": "github.com.evil.org",
        "https://other.example.org/a": "other.example.org",
        "https://127.0.0.1:8443/a": "127.0.0.1:8443",
    }.items():
        with pytest.raises(UrlRefused, match=f"its host {host} is not in the workspace's fetch_hosts"):
            hosts.check(url)


def test_a_workspace_at_a_path_has_no_host_of_its_own() -> None:
    hosts = RemoteHosts(parse_source("/srv/main"))
    with pytest.raises(UrlRefused, match="fetch_hosts"):
        hosts.check("https://github.com/a.git")


def test_the_password_of_the_workspace_goes_to_its_own_scheme_host_and_port_alone() -> None:
    hosts = RemoteHosts(parse_source("https://ann:secret@git.example.org/main.git"), ("github.com",))
    own = hosts.check("https://git.example.org/other.git")
    assert hosts.authorization_for(own) == "Authorization: Basic YW5uOnNlY3JldA=="
    for url in ("https://github.com/a.git", "git@git.example.org:a.git"):
        assert hosts.authorization_for(hosts.check(url)) is None

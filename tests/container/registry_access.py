"""How this machine reaches the package registries, in a form that a build in another root can use."""

import ast
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

HOST = "/dev/.host"
"""Where a build sees the folders of this machine that its settings name."""
_PIP = {
    "index-url", "extra-index-url", "find-links", "trusted-host", "cert", "proxy", "timeout", "default-timeout",
    "retries", "no-index", "constraint",
}  # fmt: skip
_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
_APT = re.compile(r'Acquire::(Check-Valid-Until|Check-Date|https?::\w+(::[\w.-]+)*) ".+";')


@cache
def build_settings() -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Give the environment and the binds (source, target) of a build: pip's settings, proxies, names of hosts."""
    said = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    env = {name: os.environ[name] for name in _PROXIES if name in os.environ}
    folders = set()
    for line in said.splitlines():
        key, _, value = line.partition("=")
        name = key.rpartition(".")[2]
        if name not in _PIP:
            continue
        words = []
        for word in str(ast.literal_eval(value)).split():
            path = word.removeprefix("file://")
            if path.startswith("/"):
                folders.add("/" + path.split("/")[1])
                word = word[: len(word) - len(path)] + HOST + path  # noqa: PLW2901  # the same word, elsewhere
            words.append(word)
        env["PIP_" + name.replace("-", "_").upper()] = " ".join(words)
    binds = [(folder, HOST + folder) for folder in sorted(folders)]
    binds += [(str(Path(name).resolve()), name) for name in ("/etc/resolv.conf", "/etc/hosts")]
    return env, binds


def apt_options() -> list[str]:
    """Give apt's settings of this machine about how it fetches, in apt's own words."""
    said = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True, timeout=60)
    return [line for line in said.stdout.splitlines() if _APT.fullmatch(line)]


def apt_sources(suite: str) -> str:
    """Give this machine's sources of a Debian suite as lines of a `sources.list`; nothing when it has none."""
    form = "$(REPO_URI) $(RELEASE) $(COMPONENT)"
    said = subprocess.run(
        ["apt-get", "indextargets", "--format", form, "Created-By: Packages"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    found = {
        line for line in said.stdout.splitlines() if re.search(rf" {suite}(-updates|-security)? main$", line)
    }
    return "".join(f"deb {line}\n" for line in sorted(found))

"""What an agent leaves to be harvested, broken on purpose: a clear word, a repository unharmed, and the next job well.

Bundles that are forged, huge or slow are in tests/workspace/test_sandboxed_harvest.py, thirty and more, against the
same harvest.
"""

import subprocess
from pathlib import Path

import pytest
from tests.sandboxed.host_inspection import folder_contents, run_commands

from steadyhand.testing.live_folders import paths_below
from steadyhand.testing.service import Service
from steadyhand.testing.shell import shell_prompt

HARMS = {
    "no .git at all": "rm -rf .git",
    "a .git that is a file": "rm -rf .git; echo gitdir: /mirror > .git",
    "a .git that is a link": "mv .git ~/g; ln -s ~/g .git",
    "a .git that leads to the mirror": "rm -rf .git; ln -s /mirror .git",
    "a head that is nowhere": "echo ref: refs/heads/../../../x > .git/HEAD",
    "an index that is none": "head -c 5000 /dev/urandom > .git/index",
    "a lock that is held": "touch .git/index.lock .git/HEAD.lock .git/packed-refs.lock",
    "objects that are gone": "echo y > y; git add y; git commit -qm y; find .git/objects -type f | xargs -r rm -f",
    "objects that are noise": (
        "echo y > y; git add y; git commit -qm y;"
        " for f in $(find .git/objects -type f); do chmod u+w $f; echo x > $f; done"
    ),
    "a replaced object": "git replace -f HEAD $(git commit-tree -m other $(git write-tree))",
    "a graft": "git rev-parse HEAD > .git/shallow; echo $(git rev-parse HEAD) > .git/info/grafts",
    "names that are paths": "mkdir -p '..x/ y' && touch -- '-rf' '--output=z' \"$(printf 'new\\nline')\" '..x/ y/a\\b'",
    "a name that is no text": "touch \"$(printf '\\377\\376')\"",
    "links out of the tree": "ln -s /etc/passwd p; ln -s / root; ln -s ../../../.. up; ln -s p loop; ln -s loop2 loop2",
    "a fifo and a socket": "mkfifo pipe; python3 -c \"import socket; socket.socket(1).bind('sock')\"",
    "a tree that is deep": "d=x; for i in $(seq 60); do d=$d/x; done; mkdir -p $d; echo x > $d/x",
    "many small files": "mkdir many; cd many; seq 3000 | xargs touch",
    "a file with holes": "truncate -s 3G holes",
    "a repository in it": "git init -q inner; cd inner; touch x; git add x; git commit -qm x",
    "files that cannot be read": "echo s > s; chmod 0 s; mkdir d; touch d/x; chmod 0 d",
}  # fmt: skip
NOW = {
    "a .git that leads to the mirror",
    "a head that is nowhere",
    "objects that are noise",
    "names that are paths",
    "links out of the tree",
    "a fifo and a socket",
    "a file with holes",
}
"""The others are for the long run: test_harvest.py and test_sandboxed_harvest.py break repositories like this."""


@pytest.mark.parametrize(
    "what", [pytest.param(what, marks=[] if what in NOW else [pytest.mark.long]) for what in HARMS]
)
def test_broken_work_is_kept_or_refused_with_a_word_and_harms_nothing(
    sealed: Service, workspace: str, what: str
) -> None:
    job = sealed.run_job(
        shell_prompt(f"({HARMS[what]}) 2>&1; echo more >> greeting.txt; echo done"), workspace=workspace
    )
    assert job["state"] in ("completed", "error"), job["error"]
    if job["changes"] is None:
        assert job["warnings"] or job["error"], "neither work nor a word"
    else:
        assert "+more" in sealed.client.get(f"/v1/jobs/{job['id']}/diff").text
    # Nothing of this machine came along by a link, and the repositories are whole.
    kept = folder_contents(sealed.data_dir / "jobs" / job["id"] / "kept")
    assert Path("/etc/passwd").read_bytes().splitlines()[0] not in kept
    mirrors = [head.parent for head in paths_below(sealed.data_dir / "mirrors", "HEAD")]
    assert mirrors
    for mirror in mirrors:
        fsck = ["git", "-c", "safe.directory=*", "fsck", "--strict", "--no-dangling"]
        done = subprocess.run(fsck, cwd=mirror, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
    assert run_commands(sealed, "cat greeting.txt", workspace=workspace) == "hello"

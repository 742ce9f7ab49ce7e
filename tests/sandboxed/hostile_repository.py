"""Ways to make a repository run something, and a program that tells when one of them did.

Each taint is a shell script for a work tree whose `.git` may be written; `$HOOK` is the program. `CARELESS` has, for
each, plain git commands that run it: without them nobody would know that a taint can do anything.
"""

from pathlib import Path

TAINTS = {
    "fsmonitor": "git config core.fsmonitor $HOOK",
    "include": "printf '[core]\\n fsmonitor = %s\\n' $HOOK > .git/inc; git config include.path inc",
    "external diff": (
        "git config diff.external $HOOK; git config diff.evil.textconv $HOOK; echo '* diff=evil' > .gitattributes"
    ),
    "filter": (
        "git config filter.evil.clean $HOOK; git config filter.evil.smudge $HOOK; git config filter.evil.process $HOOK;"
        " echo '* filter=evil' > .gitattributes"
    ),
    "hooks": (
        "mkdir -p .git/hooks hooks; for h in pre-commit post-commit post-index-change reference-transaction"
        " post-checkout post-merge pre-rebase post-rewrite pre-push pre-auto-gc pre-receive update post-receive"
        " post-update proc-receive push-to-checkout; do"
        " cp .git/evil .git/hooks/$h; cp .git/evil hooks/$h; done; git config core.hooksPath hooks"
    ),
    "gpg": (
        "git config gpg.program $HOOK; git config commit.gpgSign true; git config tag.gpgSign true;"
        " git config push.gpgSign if-asked; git config log.showSignature true"
    ),
    "ssh": "git config core.sshCommand $HOOK; git config remote.origin.url ssh://localhost/x",
    "uploadpack": (
        "git config uploadpack.packObjectsHook $HOOK; git config remote.origin.uploadpack $HOOK;"
        " git config remote.origin.receivepack $HOOK; git config remote.origin.url ."
    ),
    "credential helper": 'git config credential.helper "!$HOOK"; git config core.askPass $HOOK',
    "alias": (
        "for a in add commit status bundle diff log pull fetch rebase show rev-parse mine; do"
        ' git config alias.$a "!$HOOK"; done;'
        " git config core.editor $HOOK; git config core.pager $HOOK; git config sequence.editor $HOOK"
    ),
    "alternate refs": (
        "git config core.alternateRefsCommand $HOOK; git config core.gitProxy $HOOK;"
        " git config merge.evil.driver $HOOK; echo '* merge=evil' > .gitattributes;"
        " git config protocol.ext.allow always; git config gc.recentObjectsHook $HOOK;"
        ' git config url."ext::$HOOK".insteadOf /'
    ),
}

CARELESS = {
    "fsmonitor": ("git status",),
    "include": ("git status",),
    "external diff": ("git diff", "git log -p"),
    "filter": ("git add greeting.txt", "rm greeting.txt; git checkout greeting.txt"),
    "hooks": (
        "git commit --allow-empty -m x",
        "git checkout -b mine",
        "git pull ../pulled",
        "git push ../pushed HEAD:mine",
    ),
    "gpg": ("git commit --allow-empty -m x", "git tag -m x x"),
    "ssh": ("git fetch origin", "git push origin HEAD:x"),
    "uploadpack": ("git fetch origin", "git push origin HEAD:x"),
    "credential helper": ("printf 'protocol=https\\nhost=localhost\\n\\n' | git credential fill",),
    "alias": ("git mine", "git commit --allow-empty"),
    "alternate refs": (
        "git fetch '/ x'",
        "git fetch git://localhost/x",
        "git merge other",
        "git fetch ../pulled",
    ),
}


class Marks:
    """A folder in which anybody may leave a mark, and the program that does; sealed agents see neither."""

    def __init__(self, root: Path) -> None:
        self.program = root / "evil"
        self._folder = root / "marks"
        self._folder.mkdir()
        self._folder.chmod(0o777)
        self.program.write_text(self.text, encoding="utf-8")
        self.program.chmod(0o755)

    @property
    def text(self) -> str:
        """The program: it says as whom it ran, and passes on what it is given."""
        return f"#!/bin/sh\ntouch {self._folder}/$(id -u) 2>/dev/null\ntimeout 1 cat 2>/dev/null\n"

    def tainting(self, taint: str) -> str:
        """Give a script that taints the repository that it is run in.

        The program that the configuration names lies on this machine where everybody may run it, as if the agent
        knew of one; hooks are files of the repository.
        """
        made = self.text.replace("\n", "\\n")
        return f"printf '{made}' > .git/evil; chmod +x .git/evil; HOOK={self.program}; ({TAINTS[taint]}) 2>&1"

    def taken(self) -> set[int]:
        """Give the users as whom the program ran since it was asked last."""
        found = list(self._folder.iterdir())
        for path in found:
            path.unlink()
        return {int(path.name) for path in found}

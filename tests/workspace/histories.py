"""Generated histories: what an agent may do in a checkout, as steps of shell, by a seed.

A step is a piece of shell that may fail; it does what it does on both sides alike. Names are chosen from one pool, so
that steps meet: a file that one step renames may be a folder or a link by then. Times are fixed, so that the same steps
make the same objects everywhere.
"""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

MIN_STEPS, MAX_STEPS = 2, 9
_BEGIN = 1_700_000_000
_SECONDS_A_STEP = 60
UNCLEAN_BASE = "attributes"
"""A base whose blobs are not such as git would make them: it takes their files for changed once it reads them.

It does so or not by the second in which its index was written, so there all files are made newer than they were.
"""
_WRITTEN = "find . -name .git -prune -o -type f -newer ~/began"


@dataclass(frozen=True, slots=True)
class Step:
    """One step: its kind, and its script, which runs in the top folder of the checkout."""

    kind: str
    script: str


@dataclass(frozen=True, slots=True)
class History:
    """The steps of one history in the checkout of a base repository."""

    seed: int
    base: str
    steps: tuple[Step, ...]

    def without(self, index: int) -> "History":
        return replace(self, steps=self.steps[:index] + self.steps[index + 1 :])

    def script(self) -> str:
        """Return the whole script, for `/bin/sh`; it always succeeds."""
        lines = ["export GIT_AUTHOR_NAME=Agent GIT_AUTHOR_EMAIL=agent@example.org"]
        lines += ["export GIT_COMMITTER_NAME=Agent GIT_COMMITTER_EMAIL=agent@example.org GIT_EDITOR=true"]
        # A plain clone is a copy, whose files have other inodes and times of change than its index knows.
        lines += [": > ~/began", "git config core.trustctime false", "git config core.checkStat minimal"]
        if self.base == UNCLEAN_BASE:
            lines += [f"find . -name .git -prune -o -type f -exec touch -d @{_BEGIN - 1} {{}} +"]
        for number, step in enumerate(self.steps):
            # The time is the seed's too: equal steps of two histories make different commits.
            at = _BEGIN + self.seed * 10_000 + number * _SECONDS_A_STEP
            lines += [f"# {number}: {step.kind}", f"at='{at} +0000'"]
            lines += ['export GIT_AUTHOR_DATE="$at" GIT_COMMITTER_DATE="$at"']
            lines += [f"(\n{step.script}\n) >/dev/null 2>&1 </dev/null || :"]
            # Git trusts its index unless a file is as new, so written files get a time of their own.
            lines += [f"{_WRITTEN} -exec touch -d @{_BEGIN + number} {{}} + 2>/dev/null || :"]
        return "\n".join(lines) + "\n"

    def __str__(self) -> str:
        steps = "\n".join(f"--- {step.kind}\n{step.script}" for step in self.steps)
        return f"seed {self.seed}, base {self.base!r}, {len(self.steps)} steps:\n{steps}"


def generate(seed: int, bases: Sequence[str]) -> History:
    """Return the history of a seed; the bases take turns."""
    rng = Random(seed)  # noqa: S311  # no secret
    kinds = list(_STEPS)
    weights = [weight for weight, _ in _STEPS.values()]
    chosen = rng.choices(kinds, weights, k=rng.randint(MIN_STEPS, MAX_STEPS))
    steps = tuple(Step(kind, _STEPS[kind][1](rng)) for kind in chosen)
    return History(seed, bases[seed % len(bases)], steps)


# --- names and contents --------------------------------------------------------------------------

BASE_FILES: Mapping[str, str] = {
    "readme.txt": "one\\ntwo\\nthree\\n",
    "src/code.txt": "a\\nb\\nc\\nd\\ne\\nf\\ng\\n",
    "src/deep/other.md": "# other\\n",
    "run.sh": "#!/bin/sh\\necho run\\n",
    "data.bin": "\\000\\001\\002\\377",
    "windows.txt": "first\\r\\nsecond\\r\\n",
    "windows.auto": "first\\r\\nsecond\\r\\n",
    "windows.bat": "rem\\r\\necho\\r\\n",
    "plain.raw": "raw\\r\\nraw\\n",
    "marked.id": "$Id$\\nmarked\\n",
    "\u00fcn\u00efcode.txt": "umlauts\\n",
    "with space.md": "space\\n",
}
_NEW_NAMES = (
    "new.txt",
    "new.md",
    "lib/new.c",
    "lib/deep/new.h",
    "wide.u16",
    "made.bat",
    "made.auto",
    "made.raw",
    "tab\there.md",
    'quote"s.md',
    "two\nlines.md",
    "-dash.md",
    "*.glob",
    " lead.md",
    "line\u2028break.md",
    "README.TXT",
    ".hidden",
    "caf\udce9.md",
)
_IGNORED_NAMES = ("debug.log", "build/out.o", "src/trace.log")
_FOLDERS = ("src", "src/deep", "lib", "build", "sub", "inner", "empty-folder")
_LINK_TARGETS = ("readme.txt", "src", "nowhere", "../outside", "/etc/hostname", "src/code.txt", ".")
_CONTENTS = (
    "new\\n",
    "one\\ntwo\\nthree\\n",
    "first\\r\\nsecond\\r\\n",
    "mixed\\r\\nends\\n",
    "no end",
    "",
    "\\000binary\\377\\n",
    "\\377\\376w\\000\\n\\000",
    "w\\000i\\000",
    "caf\\351\\n",
    "$Id$\\n",
)
_ATTRIBUTES = (
    "* text=auto",
    "*.md text",
    "*.txt -text",
    "*.txt eol=crlf",
    "*.md text working-tree-encoding=UTF-16",
    "*.md text working-tree-encoding=UTF-16LE-BOM",
    "* -text",
    "*.md ident",
    "*.txt binary",
)
_BRANCHES = ("feature", "fix/one", "fix/two", "main", "steadyhand/work")


def _quoted(name: str) -> str:
    """Quote a name, which may hold a byte that is not UTF-8 as a surrogate."""
    return shlex.quote(name)


def _existing(rng: Random) -> str:
    return rng.choice(tuple(BASE_FILES))


def _any_file(rng: Random) -> str:
    return rng.choice((*BASE_FILES, *_NEW_NAMES))


def _write(name: str, content: str, redirect: str = ">") -> str:
    folder = name.rpartition("/")[0]
    prefix = f"mkdir -p {_quoted(folder)} && " if folder else ""
    return f"{prefix}{content} {redirect} ./{_quoted(name)}"


def _content(rng: Random) -> str:
    """Return a command that prints a file's content."""
    if rng.random() < 0.05:
        return f"seq {rng.randrange(1000)} 20000"
    return f"printf '{rng.choice(_CONTENTS)}'" if rng.random() < 0.7 else f"echo text {rng.randrange(1000)}"


# --- files ---------------------------------------------------------------------------------------


def _write_file(rng: Random) -> str:
    return _write(_any_file(rng), _content(rng))


def _append(rng: Random) -> str:
    return _write(_existing(rng), _content(rng), ">>")


def _rewrite(rng: Random) -> str:
    name = _quoted(_existing(rng))
    return f"cp -p ./{name} ~/kept && rm ./{name} && cat ~/kept > ./{name}; rm -f ~/kept"


def _delete(rng: Random) -> str:
    return f"rm -rf ./{_quoted(rng.choice((*BASE_FILES, *_FOLDERS[:3])))}"


def _move(rng: Random) -> str:
    old, new = _quoted(_existing(rng)), _any_file(rng)
    folder = new.rpartition("/")[0]
    verb = rng.choice(("mv -f", "git mv -f", "cp"))
    prefix = f"mkdir -p ./{_quoted(folder)} && " if folder else ""
    return f"{prefix}{verb} -- ./{old} ./{_quoted(new)}"


def _mode(rng: Random) -> str:
    return f"chmod {rng.choice(('+x', '-x', '600', '755', '444'))} ./{_quoted(_existing(rng))}"


def _unreadable(rng: Random) -> str:
    return f"chmod 000 ./{_quoted(rng.choice((_existing(rng), 'src', 'lib', 'src/deep')))}"


def _to_folder(rng: Random) -> str:
    name = _quoted(_any_file(rng))
    return f"rm -rf ./{name} && mkdir -p ./{name}/deep && printf in > ./{name}/file && printf x > ./{name}/deep/x"


def _to_file(rng: Random) -> str:
    return f"rm -rf ./{rng.choice(_FOLDERS)} && printf 'a file now\\n' > ./{rng.choice(_FOLDERS)}"


def _link(rng: Random) -> str:
    name = _quoted(rng.choice((_any_file(rng), rng.choice(_FOLDERS), "link")))
    return f"rm -rf ./{name}; ln -s {rng.choice(_LINK_TARGETS)} ./{name}"


def _ignored(rng: Random) -> str:
    return _write(rng.choice(_IGNORED_NAMES), _content(rng))


def _ignore_rule(rng: Random) -> str:
    rule = rng.choice(("*.md", "!debug.log", "/new.txt", "lib/", "src/", "# nothing", "!*.log"))
    place = rng.choice((".gitignore", ".gitignore", "src/.gitignore", ".git/info/exclude"))
    return f"printf '\\n%s\\n' {_quoted(rule)} >> {place}"


def _attributes(rng: Random) -> str:
    place = rng.choice((".gitattributes", ".gitattributes", "src/.gitattributes", ".git/info/attributes"))
    return f"mkdir -p .git/info; printf '\\n%s\\n' {_quoted(rng.choice(_ATTRIBUTES))} >> {place}"


# --- the index -----------------------------------------------------------------------------------


def _add_forced(rng: Random) -> str:
    name = rng.choice(_IGNORED_NAMES)
    return f"{_write(name, _content(rng))} && git add -f ./{_quoted(name)}"


def _add(rng: Random) -> str:
    return rng.choice(
        ("git add -A", "git add -u", f"git add -N -- ./{_quoted(_any_file(rng))}", "git add src")
    )


def _index_only(rng: Random) -> str:
    name = _quoted(_existing(rng))
    return rng.choice(
        (
            f"git rm -q --cached -- ./{name}",
            f"git update-index --assume-unchanged -- ./{name}",
            f"git update-index --skip-worktree -- ./{name}",
            f"git update-index --chmod=+x -- ./{name}",
            f"git add -- ./{name} && git checkout-index -f -- ./{name}",
            "git add --renormalize .",
            "rm -f .git/index",
            "git read-tree --empty",
            "git sparse-checkout set src",
            "git sparse-checkout set --no-cone /readme.txt",
        )
    )


def _pointer(rng: Random) -> str:
    commit = rng.choice(("1" * 40, "2" * 40, "$(git rev-parse HEAD)"))
    return (
        f"git update-index --add --cacheinfo 160000,{commit},{rng.choice(('sub', 'pointer', 'src/pointer'))}"
    )


# --- commits and refs ----------------------------------------------------------------------------


def _commit(rng: Random) -> str:
    message = _quoted(rng.choice(("Work", "Work\n\nwith a body", "ünï", "-m")))
    return rng.choice(
        (
            f"git add -A && git commit -q -m {message}",
            f"git add -A && git commit -q -m {message}",
            f"git commit -q -a -m {message}",
            f"git commit -q --allow-empty -m {message}",
            f"git add -A && git commit -q --amend -m {message}",
            f"git commit -q -m {message} -- ./{_quoted(_existing(rng))}",
            f"git add -A; git -c i18n.commitEncoding=ISO-8859-1 commit -q -m {message}",
        )
    )


def _commit_forced(rng: Random) -> str:
    name = rng.choice(_IGNORED_NAMES)
    return f"{_write(name, _content(rng))} && git add -f ./{_quoted(name)} && git commit -q -m forced"


_CONFLICT = """\
git checkout -q -B theirs HEAD~1 && printf 'theirs\\n' > readme.txt && git commit -q -a -m theirs
git checkout -q - && printf 'ours\\n' > readme.txt && git commit -q -a -m ours && git merge -q theirs"""


def _history(rng: Random) -> str:
    return rng.choice(
        (
            "git reset -q --soft HEAD~1",
            "git reset -q --mixed HEAD~1",
            "git reset -q --hard HEAD~1",
            "git reset -q --hard origin/side",
            "git revert -n HEAD || git revert --quit",
            "git cherry-pick origin/side || git cherry-pick --abort",
            "git rebase -q origin/side || git rebase --abort",
            "git rebase -q HEAD~2 --exec 'git commit -q --amend -m again' || git rebase --abort",
            "git merge -q -m merged origin/side || git merge --abort",
            "git merge -q origin/side",
            "git checkout -q --orphan fresh && git commit -q -m 'All anew'",
            "git checkout -q --orphan unborn",
            "GIT_SEQUENCE_EDITOR='sed -i s/^pick/edit/' git rebase -q -i HEAD~2",
            "git bisect start HEAD HEAD~2",
            _CONFLICT,
        )
    )


def _left_branch(rng: Random) -> str:
    branch = rng.choice(_BRANCHES)
    name = f"{rng.choice(('left', 'aside', 'src/left'))}-{rng.randrange(3)}.md"
    return (
        f"git checkout -q -B {branch} && {_write(name, _content(rng))} && git add -f {name} && git commit -q -m aside"
        f" && git checkout -q {rng.choice(('-', 'steadyhand/work', '--detach origin/side'))}"
    )


def _refs(rng: Random) -> str:
    branch, commit = rng.choice(_BRANCHES), rng.choice(("HEAD", "HEAD~1", "origin/side", "v1"))
    return rng.choice(
        (
            f"git branch -f {branch} {commit}",
            f"git checkout -q -b {branch} || git checkout -q {branch}",
            f"git checkout -q {branch}",
            f"git checkout -q --detach {commit}",
            f"git branch -D {branch}",
            f"git branch -m {branch}",
            f"git tag -f light {commit}",
            f"git tag -f -a -m annotated v2 {commit}",
            f"git tag -f -m moved v1 {commit}",
            "git tag -d v1",
            "git tag -f tree HEAD^{tree}",
            "git tag -f blob $(printf 'only a tag has this\\n' | git hash-object -w --stdin)",
            f"git update-ref refs/custom/one {commit}",
            "git update-ref -d refs/remotes/origin/side",
            f"git update-ref refs/remotes/origin/main {commit}",
            "git notes add -m noted HEAD",
            "git replace -f HEAD HEAD~1",
            "git pack-refs --all",
            f"git symbolic-ref refs/heads/alias refs/heads/{branch}",
        )
    )


def _stash(rng: Random) -> str:
    return rng.choice(
        (
            "git stash push -q",
            "git stash push -q",
            "git stash push -q -u",
            "git stash push -q -a",
            "git stash pop -q",
            "git stash apply -q",
            "git stash drop -q",
            "git stash branch stashed",
            "printf 'stashed\\n' >> readme.txt; git stash push -q -m named",
        )
    )


# --- repositories in the repository --------------------------------------------------------------

_INNER_COMMIT = "printf 'inner\\n' > inner.md && git add -A && git commit -q -m inner"


_VENDOR = "rm -rf sub && mkdir sub && printf 'vendored\\n' > sub/vendored.md && git rm -q --cached sub"


def _nested(rng: Random) -> str:
    folder = rng.choice(("inner", "lib/inner", "src/inner", "new.md", "sub", "build/inner"))
    return f"mkdir -p {folder} && cd {folder} && " + rng.choice(
        (
            "git init -q .",
            "git init -q . && printf 'loose\\n' > loose.md",
            f"git init -q . && {_INNER_COMMIT}",
            f"git init -q . && {_INNER_COMMIT} && printf 'dirty\\n' >> inner.md && printf 'loose\\n' > loose.md",
            f"git init -q . && {_INNER_COMMIT} && mkdir deeper && cd deeper && git init -q . && {_INNER_COMMIT}",
            f'git init -q . && {_INNER_COMMIT} && cd "$OLDPWD" && git add {folder}',
            f'git init -q . && {_INNER_COMMIT} && cd "$OLDPWD" && git add {folder} && git commit -q -m embedded',
            f"git init -q . && {_INNER_COMMIT} && rm -rf .git",
            'git clone -q "$OLDPWD" .',
        )
    )


def _submodule(rng: Random) -> str:
    return rng.choice(
        (
            "mkdir -p sub && printf 'in it\\n' > sub/file.md",
            _VENDOR,
            f"{_VENDOR}; git add -A && git commit -q -m vendored",
            "git rm -q -f sub && git commit -q -m 'No submodule'",
            f"cd sub && git init -q . && {_INNER_COMMIT}",
            f"cd sub && git init -q . && {_INNER_COMMIT} && cd .. && git add sub && git commit -q -m 'Move it'",
            "rmdir sub",
            "git mv sub moved-sub",
        )
    )


def _worktree(rng: Random) -> str:
    folder = rng.choice(("tree", "lib/tree", "build/tree", "~/tree"))
    branch = rng.choice(("-b worked", "--detach", "-B feature"))
    return f"git worktree add -q {branch} {folder} && cd {folder} && " + rng.choice(
        (
            "true",
            "printf 'in the worktree\\n' > worktree.md",
            "printf 'in the worktree\\n' > worktree.md && git add worktree.md && git commit -q -m 'In a worktree'",
            "git rm -q -r -f . ; git commit -q -m 'Nothing left'",
        )
    )


def _git_dir(rng: Random) -> str:
    return rng.choice(
        (
            "mv .git ~/moved.git && printf 'gitdir: %s\\n' ~/moved.git > .git",
            "chmod 000 .git",
            "rm -rf .git",
            "git config core.fileMode false",
            "git config core.autocrlf true",
            "git config core.bare true",
            "git gc -q --prune=now",
            "git repack -q -a -d",
        )
    )


_STEPS: Mapping[str, tuple[int, Callable[[Random], str]]] = {
    "write": (10, _write_file),
    "append": (6, _append),
    "rewrite": (3, _rewrite),
    "delete": (4, _delete),
    "move": (6, _move),
    "mode": (4, _mode),
    "unreadable": (1, _unreadable),
    "to folder": (3, _to_folder),
    "to file": (2, _to_file),
    "link": (4, _link),
    "ignored file": (3, _ignored),
    "ignore rule": (2, _ignore_rule),
    "attributes": (4, _attributes),
    "add by force": (3, _add_forced),
    "add": (3, _add),
    "index": (3, _index_only),
    "pointer": (2, _pointer),
    "commit": (14, _commit),
    "commit by force": (2, _commit_forced),
    "history": (6, _history),
    "branch that is left": (5, _left_branch),
    "refs": (8, _refs),
    "stash": (5, _stash),
    "nested": (4, _nested),
    "submodule": (4, _submodule),
    "worktree": (3, _worktree),
    "git directory": (2, _git_dir),
}

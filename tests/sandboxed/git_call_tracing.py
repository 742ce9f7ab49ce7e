"""Every place from which the service calls git: found in its code, and told apart while it runs.

A place is named by its module, its function and git's verb. What passes a verb on (`Mirror._run_fetch` and the like)
is no place of its own: its caller is.
"""

import ast
import functools
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from tests.sandboxed.hostile_repository import AttackMarks

import steadyhand
from steadyhand.ports import ExecResult
from steadyhand.runner.process.sandbox_exec import ProcessSandboxExec
from steadyhand.workspace import git as git_module
from steadyhand.workspace import mirror, repository_source, sandboxed_git_client
from steadyhand.workspace.local_exec import LocalExec

SOURCES = Path(steadyhand.__file__).parent
_WORKSPACE_SOURCES = SOURCES / "workspace"
_CALL_NAMES = {"run", "_run", "_git", "git", "_run_fetch", "_line", "serving_command"}
_WRAPPER_FUNCTIONS = {
    ("sandboxed_commits", "_line"),
    ("mirror", "_run_remote_fetch"),
    ("sandboxed_git", "_git_with_progress"),
}
UNKNOWN_PLACE = "between calls of git"
_OUTPUT_PREFIX = b"@git-call "

# The program inside says on stderr from where it calls git: by the numbers of its lines, which this does not move.
_TRACE_CODE = f"""
import json, sys
def _told(git):
    def told(*arguments, **options):
        frame, lines = sys._getframe(1), []
        while frame is not None:
            lines.append([frame.f_code.co_filename.removesuffix(".py"), frame.f_lineno])
            frame = frame.f_back
        sys.stderr.write({_OUTPUT_PREFIX.decode()!r} + json.dumps(lines) + "\\n")
        sys.stderr.flush()
        return git(*arguments, **options)
    return told
{{name}} = _told({{name}})
"""
_TRACED = {"sandboxed_command": "git", "sandboxed_git": "_git"}
"""The functions of the program inside that start git."""


@functools.cache
def find_call_sites() -> Mapping[tuple[str, int], str]:
    """Give every place by its module and each line that it takes up."""
    found = {}
    for path in sorted(_WORKSPACE_SOURCES.glob("*.py")):
        seen: Counter[str] = Counter()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for call, function, scope in _find_calls(tree, "module", tree):
            verb = _verb_of(call, scope)
            if verb is None or (path.stem, function) in _WRAPPER_FUNCTIONS:
                continue
            name = f"{path.stem}.{function} {verb}"
            seen[name] += 1
            if seen[name] > 1:
                name += f" ({seen[name]})"
            for line in range(call.lineno, (call.end_lineno or call.lineno) + 1):
                found[path.stem, line] = name
    return found


def _find_calls(node: ast.AST, function: str, scope: ast.AST) -> Iterator[tuple[ast.Call, str, ast.AST]]:
    for child in ast.iter_child_nodes(node):
        is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        inner = child.name if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else function
        if isinstance(child, ast.Call) and _name_of(child.func) in _CALL_NAMES:
            yield child, function, scope
        yield from _find_calls(child, inner, child if is_function else scope)


def _name_of(called: ast.expr) -> str:
    if isinstance(called, ast.Attribute):
        return called.attr
    return called.id if isinstance(called, ast.Name) else ""


def _verb_of(call: ast.Call, scope: ast.AST) -> str | None:
    """Give the first word that is a command of git's; words that stand in a tuple of the function count."""
    words: list[str] = []
    for argument in call.args:
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
            words.append(argument.value)
        elif isinstance(argument, ast.Starred) and isinstance(argument.value, ast.Name):
            words += _words_of(argument.value.id, scope, call.lineno)
    if _name_of(call.func) == "_run_fetch":
        return "fetch"
    return next((word for word in words if word in _commands()), None)


def _words_of(name: str, scope: ast.AST, line: int) -> list[str]:
    """Give the words of the last assignment to a name before a line; without one it is a diff of the request."""
    found: list[str] = []
    for node in ast.walk(scope):
        if isinstance(node, ast.Assign) and name in [_name_of(target) for target in node.targets]:
            words = [each.value for each in ast.walk(node.value)
                     if isinstance(each, ast.Constant) and isinstance(each.value, str)]  # fmt: skip
            found = words if node.lineno <= line else found
    return found + (["diff"] if name in {"command", "DIFF"} else [])


@functools.cache
def _commands() -> frozenset[str]:
    listed = subprocess.run(["git", "--list-cmds=builtins"], capture_output=True, text=True, check=True)
    return frozenset(listed.stdout.split())


class GitCallTracer:
    """Tells, for each place, as which users a taint ran while git was called from there; and between the calls."""

    def __init__(self, marks: AttackMarks, patch: pytest.MonkeyPatch) -> None:
        self.ran: dict[str, set[int]] = {}
        self._marks = marks
        self._passing: list[str] = []
        patch.setattr(git_module.Git, "run", self._trace_local(git_module.Git.run))
        patch.setattr(mirror, "serving_command", self._trace_remote(repository_source.serving_command))
        for runner in (ProcessSandboxExec, LocalExec):
            patch.setattr(runner, "run", self._trace_program(runner.run))
        sources = dict(sandboxed_git_client.program_sources())
        for module, name in _TRACED.items():
            sources[module] += _TRACE_CODE.replace("{name}", name)
        program = sandboxed_git_client.build_program(sources)
        patch.setattr(sandboxed_git_client, "_program", lambda: program)

    def _record(self, names: Sequence[str]) -> None:
        users = self._marks.take_marks()
        for name in names:
            self.ran.setdefault(name, set()).update(users)

    def _trace_local(self, run: Any) -> Any:
        async def watched(git: git_module.Git, *arguments: str, **options: Any) -> git_module.GitResult:
            name = _innermost_call_site(_stack_lines(sys._getframe(1)))
            names, self._passing = [name, *self._passing], []
            self._record([UNKNOWN_PLACE])
            try:
                ran: git_module.GitResult = await run(git, *arguments, **options)
            finally:
                self._record(names)
            return ran

        return watched

    def _trace_remote(self, other_side: Any) -> Any:
        """What runs on a repository's own side is started by git itself, with the next command."""

        def watched(of: repository_source.RepositorySource, verb: str) -> str | None:
            command: str | None = other_side(of, verb)
            self._passing.append(_innermost_call_site(_stack_lines(sys._getframe(1))))
            return command

        return watched

    def _trace_program(self, run: Any) -> Any:
        async def watched(
            errands: ProcessSandboxExec | LocalExec, argv: Sequence[str], *others: Any, **options: Any
        ) -> ExecResult:
            names = (
                [_innermost_call_site(_stack_lines(sys._getframe(1)))]
                if argv[0] == "git"
                else [UNKNOWN_PLACE]
            )
            done: ExecResult = await run(errands, argv, *others, **options)
            lines = done.stderr.splitlines(keepends=True)
            told = [line.removeprefix(_OUTPUT_PREFIX) for line in lines if line.startswith(_OUTPUT_PREFIX)]
            names += [
                _innermost_call_site([(module, number) for module, number in json.loads(line)])
                for line in told
            ]
            self._record(names)
            rest = b"".join(line for line in lines if not line.startswith(_OUTPUT_PREFIX))
            return replace(done, stderr=rest)

        return watched


def _stack_lines(frame: FrameType | None) -> Sequence[tuple[str, int]]:
    found = []
    while frame is not None:
        found.append((Path(frame.f_code.co_filename).stem, frame.f_lineno))
        frame = frame.f_back
    return found


def _innermost_call_site(lines: Sequence[tuple[str, int]]) -> str:
    """Give the innermost place on the way to a call. A call from anywhere else is one that this does not know."""
    name = next((find_call_sites()[line] for line in lines if line in find_call_sites()), None)
    assert name is not None, f"git is called from a place that is not known: {lines[:6]}"
    return name

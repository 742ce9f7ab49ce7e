"""Each task has an owner, and each handler that catches everything has its reason beside it."""

import ast
from collections.abc import Iterator

from tests.package.test_wording import room
from tests.source_trees import SOURCES, trees_with

TASK_OWNERS = {
    "gateway/money/ledger_writer.py": "LedgerWriter.open waits for its writes at its end, then the store ends the rest",
    "queue/new_jobs.py": "NewJobs.close waits for the jobs that are being stored, and cancels the rest",
    "serve/handover.py": "HandoverServer.listening cancels its task at its end and waits for it",
}
"""Modules that start a task outside of a task group, and the object that waits for it."""

_STARTERS = {"create_task", "ensure_future", "gather", "run_coroutine_threadsafe"}
_BROAD = {"Exception", "BaseException"}


def task_groups(tree: ast.Module) -> set[str]:
    """Return the names to which `async with asyncio.TaskGroup()` binds a group, and the parameters that are one."""
    bound = {
        ast.unparse(item.optional_vars)
        for node in ast.walk(tree)
        if isinstance(node, ast.AsyncWith)
        for item in node.items
        if item.optional_vars is not None and ast.unparse(item.context_expr) == "asyncio.TaskGroup()"
    }
    passed = {
        node.arg
        for node in ast.walk(tree)
        if isinstance(node, ast.arg) and node.annotation is not None
        if ast.unparse(node.annotation) == "asyncio.TaskGroup"
    }
    return bound | passed


def ungrouped_tasks(tree: ast.Module) -> Iterator[ast.Call]:
    """Yield the calls that start a task outside of a task group."""
    groups = task_groups(tree)
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        name = node.func.attr
        shields_call = name == "shield" and any(isinstance(each, ast.Call) for each in node.args)
        is_grouped = name == "create_task" and ast.unparse(node.func.value) in groups
        if shields_call or (name in _STARTERS and not is_grouped):
            yield node


def broad_handlers(tree: ast.Module) -> Iterator[ast.ExceptHandler]:
    """Yield the handlers of `Exception` and `BaseException`, also among others, and those of everything."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            if any(each is None or ast.unparse(each) in _BROAD for each in caught):
                yield node


def broad_suppressions(tree: ast.Module) -> Iterator[ast.Call]:
    """Yield the calls of `suppress` with `Exception` or `BaseException`."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).endswith("suppress")
            and any(ast.unparse(each) in _BROAD for each in node.args)
        ):
            yield node


def has_reason(line: str) -> bool:
    """Return True if a line has a comment that is more than an exemption from the linter."""
    comments = [comment.strip() for comment in line.split("#")[1:]]
    return any(comment and not comment.startswith("noqa") for comment in comments)


def test_each_task_is_in_a_group_or_has_a_named_owner() -> None:
    found = {
        path.as_posix()
        for path, tree in trees_with(r"\b(" + "|".join({*_STARTERS, "shield"}) + r")\b")
        # A contract gathers; a failure ends the test, and `asyncio.run` its tasks.
        for call in ungrouped_tasks(tree)
        if not (room(path) == "testing" and ast.unparse(call.func) == "asyncio.gather")
    }
    assert found == set(TASK_OWNERS)


def test_each_broad_handler_says_why_it_catches_everything() -> None:
    found: list[str] = []
    for path, tree in trees_with(r"\bexcept\b[^:]*Exception\b|\bexcept\s*:|suppress\([^)]*Exception\b"):
        lines = (SOURCES / path).read_text("utf-8").splitlines()
        found += [
            f"{path}:{number}"
            for number in [each.lineno for each in broad_handlers(tree)]
            + [each.lineno for each in broad_suppressions(tree)]
            if not has_reason(lines[number - 1])
        ]
    assert found == []


def test_the_searches_find_each_form_of_a_task_and_of_a_broad_handler() -> None:
    tasks = ast.parse(
        "async def run(group: asyncio.TaskGroup, loop):\n"
        "    group.create_task(work())\n"
        "    async with asyncio.TaskGroup() as other: other.create_task(work())\n"
        "    asyncio.create_task(work())\n"
        "    loop.create_task(work())\n"
        "    asyncio.ensure_future(work())\n"
        "    await asyncio.gather(work())\n"
        "    await asyncio.shield(work())\n"
        "    await asyncio.shield(task)\n"
    )
    assert [call.lineno for call in ungrouped_tasks(tasks)] == [4, 5, 6, 7, 8]
    handlers = ast.parse(
        "try: pass\n"
        "except (OSError, ValueError): pass\n"
        "except (OSError, Exception): pass\n"
        "except BaseException: pass\n"
        "except: pass\n"
    )
    assert [handler.lineno for handler in broad_handlers(handlers)] == [3, 4, 5]
    assert len(list(broad_suppressions(ast.parse("contextlib.suppress(OSError, Exception)")))) == 1
    assert has_reason("except Exception:  # noqa: BLE001  # the boundary of a job")
    assert not has_reason("except Exception:  # noqa: BLE001")

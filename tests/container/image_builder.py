"""Carries out a Dockerfile's own steps without an engine: each step in a root of its own over the layers before it.

Layers are folders, kept by what they were made from, as engines keep them, so that a second build takes moments. What
depends on the sources, which change all the time, is kept for hours: for the other processes of a run of the tests.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.container import registry_access
from tests.container.dockerfile import Copy, Run, Stage, UnsupportedInstruction

ENTER = str(Path(__file__).with_name("enter.py"))
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""What engines give when an image says nothing."""
BASE = "debian:bookworm-slim"
SUITE = "bookworm"
STEP_SECONDS, BASE_SECONDS = 600, 900
FRESH_SECONDS, KEPT_SECONDS, CHANGING_SECONDS = 7 * 86_400, 14 * 86_400, 3 * 3_600
_FROM = "/dev/.from"
_CHANGING = "src"
_CHANGING_PREFIX, _GONE_PREFIX = "changing-", "gone-"
_SLIM = (
    "force-unsafe-io", "path-exclude=/usr/share/man/*", "path-exclude=/usr/share/doc/*",
    "path-exclude=/usr/share/locale/*",
)  # fmt: skip
_COPY = """
target=$1; shift
for source; do
    if [ -d "$source" ]; then
        mkdir -p "$target"
        cp -r --preserve=mode,timestamps "$source/." "$target"
    else
        case $target in */) mkdir -p "$target";; *) mkdir -p "$(dirname "$target")";; esac
        cp --preserve=mode,timestamps "$source" "$target"
    fi
done
"""


Bind = tuple[str | list[str], str]
"""What is shown at a place: a path of this machine, or layers."""


@dataclass(frozen=True, slots=True)
class Image:
    """What was built: its layers, the lowest first, and the stage that says how it is started."""

    layers: tuple[str, ...]
    stage: Stage


@dataclass(frozen=True, slots=True)
class _BuildState:
    """A stage so far: its layers, what it was made from, and True if it is without the sources."""

    layers: tuple[str, ...]
    key: str
    is_lasting: bool = True


def cache_folder() -> Path:
    """Give the folder of the layers that are kept, outside of the project."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "steadyhand-container"


class ImageBuilder:
    """Builds in `scratch`, which has to be on the file system of no overlay, from the context `project`."""

    def __init__(self, project: Path, scratch: Path, cache: Path) -> None:
        self._scratch = scratch
        self._cache = cache
        self._context = scratch / "context"
        _make_context(project, self._context)
        self._number = 0

    def build(self, stages: Sequence[Stage]) -> Image:
        """Carry out all stages and give the last."""
        self._cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _exclusive_lock(self._cache / "lock"):
            self._forget_old()
            named: dict[str, _BuildState] = {}
            for stage in stages:
                if stage.base != BASE:
                    raise UnsupportedInstruction(f"FROM {stage.base}: only {BASE} can be made here")
                built = self._base()
                for step in stage.steps:
                    built = self._step(built, stage, step, named)
                if stage.name is not None:
                    named[stage.name] = built
        return Image(built.layers, stages[-1])

    # --- one layer --------------------------------------------------------------------------

    def _base(self) -> _BuildState:
        """Give Debian's smallest root, as its slim image is."""
        found = sorted(self._cache.glob("base-*"))
        if found and time.time() - int(found[-1].name.partition("-")[2]) < FRESH_SECONDS:
            return _BuildState((str(found[-1]),), found[-1].name)
        part = self._cache / f"part-{os.getpid()}"
        words = ["mmdebstrap", "--quiet", "--variant=minbase", "--mode=root"]
        words += [f"--dpkgopt={each}" for each in _SLIM]
        words += [f"--aptopt={each.removesuffix(';')}" for each in registry_access.apt_options()]
        sources = registry_access.apt_sources(SUITE)
        _run_command(
            [*words, SUITE, str(part), *(["-"] if sources else [])], BASE_SECONDS, "the base", given=sources
        )
        base = self._cache / f"base-{int(time.time())}"
        part.rename(base)
        return _BuildState((str(base),), base.name)

    def _step(
        self, built: _BuildState, stage: Stage, step: Run | Copy, named: dict[str, _BuildState]
    ) -> _BuildState:
        env = {"PATH": PATH, **stage.env}
        binds: list[Bind]
        is_lasting, sources = built.is_lasting, ""
        if isinstance(step, Run):
            argv = ["/bin/sh", "-c", step.command]
            more, folders = registry_access.build_settings()
            env |= more
            binds = [*folders]
        else:
            argv = ["/bin/sh", "-ec", _COPY, "copy", step.target]
            argv += [f"{_FROM}/{each.lstrip('/')}" for each in step.sources]
            if step.stage is None:
                binds = [(str(self._context), _FROM)]
                sources = _digest(self._context, step.sources)
                is_lasting = is_lasting and _CHANGING not in step.sources
            else:
                other = named[step.stage]
                binds = [(list(other.layers), _FROM)]
                sources, is_lasting = other.key, is_lasting and other.is_lasting
        made_from = json.dumps([built.key, repr(step), stage.env, sources])
        key = hashlib.sha256(made_from.encode()).hexdigest()[:24]
        layer = self._cache / (key if is_lasting else _CHANGING_PREFIX + key)
        if not layer.is_dir():
            self._enter(built.layers, binds, env, argv, str(step)).rename(layer)
        os.utime(layer)
        return _BuildState((*built.layers, str(layer)), key, is_lasting)

    def _enter(
        self, lower: Sequence[str], binds: Sequence[Bind], env: dict[str, str], argv: list[str], what: str
    ) -> Path:
        self._number += 1
        # Beside the kept ones: a rename must not cross file systems.
        area = Path(tempfile.mkdtemp(prefix="step-", dir=self._scratch))
        for name in ("root", "upper", "work"):
            (area / name).mkdir(mode=0o755)
        spec = {
            "root": str(area / "root"), "lower": lower, "upper": str(area / "upper"), "work": str(area / "work"),
            "binds": binds, "masked": [], "read_only": [], "alone": False, "init": False, "folder": "/", "env": env,
            "argv": argv,
        }  # fmt: skip
        _run_command(enter_command(spec, "--mount", "--pid"), STEP_SECONDS, what)
        return area / "upper"

    def _forget_old(self) -> None:
        """Remove layers that nobody asked for in a while, and the rest of removals that were interrupted."""
        for path in self._cache.iterdir():
            with suppress(FileNotFoundError):  # another process has taken its scratch folder away
                self._forget_if_old(path)

    def _forget_if_old(self, path: Path) -> None:
        seconds = CHANGING_SECONDS if path.name.startswith(_CHANGING_PREFIX) else KEPT_SECONDS
        is_gone = path.name.startswith(_GONE_PREFIX)
        if not path.is_dir() or (not is_gone and time.time() - path.stat().st_mtime <= seconds):
            return
        # First to another name: half of a layer must not be taken for the whole one.
        shutil.rmtree(path if is_gone else path.rename(self._cache / f"{_GONE_PREFIX}{time.time_ns()}"))


def enter_command(spec: dict[str, object], *namespaces: str) -> list[str]:
    """Give the command that goes into a root; all of it dies with the one who starts it."""
    own = ["unshare", *namespaces, "--propagation", "private", "--fork", "--kill-child"]
    return ["setpriv", "--pdeathsig", "KILL", *own, sys.executable, "-I", "-S", ENTER, json.dumps(spec)]


def _run_command(words: Sequence[str], seconds: int, what: str, given: str = "") -> None:
    done = subprocess.run(
        words, input=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        timeout=seconds, env={"PATH": PATH},
    )  # fmt: skip
    if done.returncode != 0:
        raise AssertionError(f"{what} ended with {done.returncode}:\n{done.stdout[-4000:]}")


@contextmanager
def _exclusive_lock(lock: Path) -> Iterator[None]:
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# --- the context -----------------------------------------------------------------------------------


def _make_context(project: Path, context: Path) -> None:
    """Copy what `.dockerignore` lets through; it names what may come along, and nothing else is known here."""
    first, *lines = (project / ".dockerignore").read_text("utf-8").split()
    if first != "*":
        raise UnsupportedInstruction(".dockerignore must begin with `*`")
    left_out = [line.removeprefix("**/") for line in lines if line.startswith("**/")]
    let_in = [line.removeprefix("!") for line in lines if line.startswith("!")]
    if len(left_out) + len(let_in) != len(lines):
        raise UnsupportedInstruction(f".dockerignore: {lines}")
    context.mkdir()
    for name in let_in:
        if (project / name).is_dir():
            shutil.copytree(project / name, context / name, ignore=shutil.ignore_patterns(*left_out))
        else:
            shutil.copy2(project / name, context / name)


def _digest(context: Path, sources: Sequence[str]) -> str:
    found = hashlib.sha256()
    for source in sources:
        top = context / source
        for path in sorted([top, *top.rglob("*")]):
            if path.is_file():
                name = str(path.relative_to(context)).encode()
                found.update(b"%d %s %o\0" % (len(name), name, path.stat().st_mode) + path.read_bytes())
    return found.hexdigest()

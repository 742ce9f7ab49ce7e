"""The project's Dockerfile, read strictly: what it does not use is not known here, and fails."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field


class UnsupportedInstruction(Exception):
    """The file says something that is not known here, or not in this form."""


@dataclass(frozen=True, slots=True)
class Run:
    """A shell command of the build."""

    command: str


@dataclass(frozen=True, slots=True)
class Copy:
    """Files into the image: from the context, or from a stage."""

    sources: tuple[str, ...]
    target: str
    stage: str | None = None


@dataclass(slots=True)
class Stage:
    """One image: what it is made from, the steps in order, and how it is started."""

    base: str
    name: str | None
    steps: list[Run | Copy] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    volumes: list[str] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)
    user: tuple[int, int] = (0, 0)
    folder: str = "/"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)
    health_options: dict[str, str] = field(default_factory=dict)


_FLAG = re.compile(r"--([a-z-]+)=(\S+)")
_HEALTH = {"interval", "timeout", "start-period", "retries"}


def parse(text: str) -> list[Stage]:
    """Give the stages of a Dockerfile. Raises `NotUnderstood`."""
    stages: list[Stage] = []
    for word, rest in _instructions(text):
        if word == "FROM":
            stages.append(_from(rest))
        elif not stages:
            raise UnsupportedInstruction(f"{word} before FROM")
        else:
            _add(stages[-1], word, rest)
    if not stages:
        raise UnsupportedInstruction("no FROM")
    return stages


def _instructions(text: str) -> Iterator[tuple[str, str]]:
    """Give each instruction with its text; comments are gone and lines that go on are one."""
    kept = ""
    for line in text.splitlines():
        if line.lstrip().startswith("#") or not (kept or line.strip()):
            continue
        if not line.strip():
            raise UnsupportedInstruction("an empty line inside an instruction")
        kept += line
        if kept.endswith("\\"):
            kept = kept[:-1]
            continue
        word, _, rest = kept.strip().partition(" ")
        yield word, rest.strip()
        kept = ""
    if kept:
        raise UnsupportedInstruction("the last instruction goes on after the end")


def _from(rest: str) -> Stage:
    found = re.fullmatch(r"([a-z0-9:._/-]+)(?: AS ([a-z]+))?", rest)
    if found is None:
        raise UnsupportedInstruction(f"FROM {rest}")
    return Stage(found[1], found[2])


def _add(stage: Stage, word: str, rest: str) -> None:
    match word:
        case "RUN" if not rest.startswith(("[", "--")) and stage.user == (0, 0) and stage.folder == "/":
            stage.steps.append(Run(rest))
        case "COPY":
            stage.steps.append(_copy(rest))
        case "ENV":
            _env(stage, rest)
        case "VOLUME":
            stage.volumes += _words(word, rest)
        case "EXPOSE":
            stage.ports.append(int(rest))
        case "USER":
            _user(stage, rest)
        case "WORKDIR" if re.fullmatch(r"/[\w/.-]*", rest):
            stage.folder = rest
        case "ENTRYPOINT":
            stage.entrypoint = _words(word, rest)
        case "CMD":
            stage.command = _words(word, rest)
        case "HEALTHCHECK":
            _health(stage, rest)
        case _:
            raise UnsupportedInstruction(f"{word} {rest}")


def _env(stage: Stage, rest: str) -> None:
    found = re.fullmatch(r"([A-Z_]+)=([\w/.:-]+)", rest)
    if found is None:
        raise UnsupportedInstruction(f"ENV {rest}")
    stage.env[found[1]] = found[2]


def _user(stage: Stage, rest: str) -> None:
    found = re.fullmatch(r"(\d+):(\d+)", rest)
    if found is None:
        raise UnsupportedInstruction(f"USER {rest}: not a pair of numbers")
    stage.user = int(found[1]), int(found[2])


def _copy(rest: str) -> Copy:
    words = rest.split()
    stage = None
    while words and words[0].startswith("--"):
        flag = _FLAG.fullmatch(words.pop(0))
        if flag is None or flag[1] != "from":
            raise UnsupportedInstruction(f"COPY {rest}")
        stage = flag[2]
    if len(words) < 2 or any(re.fullmatch(r"[\w/.-]+", each) is None for each in words):
        raise UnsupportedInstruction(f"COPY {rest}")
    *sources, target = words
    if not target.startswith("/") or (len(sources) > 1 and not target.endswith("/")):
        raise UnsupportedInstruction(f"COPY {rest}: the target must be a folder of the image")
    return Copy(tuple(sources), target, stage)


def _health(stage: Stage, rest: str) -> None:
    options, command, words = rest.partition("CMD ")
    for option in options.split():
        flag = _FLAG.fullmatch(option)
        if flag is None or flag[1] not in _HEALTH:
            raise UnsupportedInstruction(f"HEALTHCHECK {option}")
        stage.health_options[flag[1]] = flag[2]
    if not command:
        raise UnsupportedInstruction(f"HEALTHCHECK {rest}")
    stage.health = _words("HEALTHCHECK", words)


def _words(what: str, rest: str) -> list[str]:
    """Read the form that no shell takes apart: a JSON list of strings."""
    try:
        words = json.loads(rest)
    except json.JSONDecodeError as error:
        raise UnsupportedInstruction(f"{what} {rest}: not a JSON list") from error
    if not isinstance(words, list) or not words or not all(isinstance(each, str) for each in words):
        raise UnsupportedInstruction(f"{what} {rest}: not a list of words")
    return words

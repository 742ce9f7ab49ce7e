"""The reader of the Dockerfile: it knows what ours says, and nothing else passes."""

from pathlib import Path

import pytest
from tests.container.dockerfile import Copy, Run, UnsupportedInstruction, parse

OURS = (Path(__file__).resolve().parents[2] / "Dockerfile").read_text("utf-8")


def test_our_file_is_read_to_the_last_word() -> None:
    build, final = parse(OURS)
    assert (build.name, final.name) == ("build", None)
    assert {build.base, final.base} == {"debian:bookworm-slim"}
    assert Copy(("src",), "/src/src") in build.steps
    assert Copy(("/wheels",), "/tmp/wheels", "build") in final.steps  # noqa: S108  # the image's own
    assert all(isinstance(each, Run | Copy) for each in final.steps)
    assert (final.user, final.folder) == ((10001, 10001), "/home/steadyhand")
    assert final.entrypoint + final.command == ["steadyhand", "serve", "--host", "0.0.0.0", "--port", "8080"]  # noqa: S104
    assert final.health[:2] == ["python3", "-c"]
    assert final.health_options["interval"] == "10s"


def test_a_command_over_several_lines_is_one_without_the_comments_in_between() -> None:
    (stage,) = parse("FROM a\nRUN one \\\n  # why\n  && two\n")
    assert stage.steps == [Run("one   && two")]


@pytest.mark.parametrize(
    "line",
    [
        "ADD https://example.org/x /x",
        'SHELL ["/bin/bash"]',
        "ONBUILD RUN true",
        "ARG X=1",
        'RUN ["true"]',
        "RUN --mount=type=cache,target=/x true",
        "COPY --chown=1:1 a /b",
        "COPY a b",
        "COPY a b /c",
        "COPY *.txt /c/",
        "ENV A B",
        'ENV A="b c"',
        "USER steadyhand",
        "WORKDIR home",
        "ENTRYPOINT steadyhand",
        "CMD [1]",
        "HEALTHCHECK NONE",
        'HEALTHCHECK --start-interval=1s CMD ["true"]',
        "run true",
        "USER 1:1\nRUN true",
        "WORKDIR /x\nRUN true",
        "RUN true \\",
    ],
)
def test_what_is_not_known_here_fails(line: str) -> None:
    with pytest.raises(UnsupportedInstruction):
        parse(f"FROM a\n{line}\n")


def test_nothing_comes_before_the_base() -> None:
    with pytest.raises(UnsupportedInstruction):
        parse("RUN true\n")
    with pytest.raises(UnsupportedInstruction):
        parse("# nothing\n")

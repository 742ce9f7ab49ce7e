"""The classic command line: the contract, its words to the letter, and the answers it takes."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from steadyhand.agents import BUILT_IN_AGENTS, Agent
from steadyhand.job import OutcomeType
from steadyhand.ports import Runner
from steadyhand.redact import NO_REDACTION
from steadyhand.runner.claude.plain import PlainRunner, parse_output, plain_argv
from steadyhand.runner.claude.session import session_directory, session_file
from steadyhand.runner.claude.session_cost import read_carried_micros
from steadyhand.sandbox.sandbox import NoSandbox
from steadyhand.testing.contracts.runner import RunnerContract
from steadyhand.testing.contracts.runner_harness import RunnerHarness

CLI = Path("/opt/claude")


class TestPlainRunner(RunnerContract):
    long_tests = frozenset(  # the process and its end are those of the other mode
        {
            "test_an_agent_that_stays_after_its_result_is_ended_and_its_result_counts",
            "test_every_reason_to_stop_ends_all_of_a_deaf_agent_in_time",
            "test_a_flood_of_any_kind_leaves_the_service_within_fifty_megabytes",
            "test_what_a_good_run_leaves_behind_is_ended_before_it_returns",
            "test_prompts_that_look_like_options_arrive_as_text",
            "test_a_tool_that_ignores_being_asked_is_ended_with_its_agent",
        }
    )

    def runner(self, cli: Path) -> Runner:
        return PlainRunner(cli, NoSandbox(), NO_REDACTION)


def _arguments(folder: Path, **fields: object) -> list[str]:
    spec = RunnerHarness.make(PlainRunner(CLI, NoSandbox(), NO_REDACTION), folder, "hello", **fields).spec
    return plain_argv(CLI, spec)


def test_the_command_is_the_earlier_services_to_the_letter(tmp_path: Path) -> None:
    line = " ".join(_arguments(tmp_path, agent="recruiter-triage", budget_micros=2_000_000))
    assert line == (
        "/opt/claude -p --agent recruiter-triage --dangerously-skip-permissions --max-budget-usd 2.0"
        " --output-format json"
    )


def test_the_command_has_no_budget_where_the_gateway_holds_it(tmp_path: Path) -> None:
    runner = PlainRunner(CLI, NoSandbox(), NO_REDACTION, enforce_budget=False)
    spec = RunnerHarness.make(runner, tmp_path, "hello").spec
    assert "--max-budget-usd" not in plain_argv(CLI, spec, enforce_budget=False)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '"totalCostUSD"', '{"totalCostUSD": "9"}', '{"a": {"totalCostUSD": 9}}']
)
def test_the_cost_that_a_session_carries_is_its_last_one_and_0_in_a_file_of_a_wrong_shape(
    tmp_path: Path, text: str
) -> None:
    spec = RunnerHarness.make(PlainRunner(CLI, NoSandbox(), NO_REDACTION), tmp_path, "hello").spec
    assert spec.checkout.config_dir is not None
    directory = session_directory(NoSandbox().agent_paths(spec.checkout), NoSandbox())
    path = session_file(spec.checkout.config_dir, directory, "s")
    assert read_carried_micros(spec, NoSandbox(), "s") == 0
    path.parent.mkdir(parents=True)
    path.write_text(text, "utf-8")
    assert read_carried_micros(spec, NoSandbox(), "s") == 0
    path.write_text('{"totalCostUSD": 0.25}\n{"totalCostUSD": 0.5}\n{"type": "user"}\n', "utf-8")
    assert read_carried_micros(spec, NoSandbox(), "s") == 500_000
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")
    assert read_carried_micros(spec, NoSandbox(), "s") == 0
    path.unlink()
    os.mkfifo(path)
    assert read_carried_micros(spec, NoSandbox(), "s") == 0


@pytest.mark.parametrize(
    ("micros", "text"), [(5_000_000, "5.0"), (500_000, "0.5"), (1, "0.000001"), (12_340_000, "12.34")]
)
def test_a_budget_is_written_as_a_plain_number(tmp_path: Path, micros: int, text: str) -> None:
    assert _arguments(tmp_path, budget_micros=micros)[6] == text


def test_a_model_is_named_when_the_job_names_one(tmp_path: Path) -> None:
    assert _arguments(tmp_path, model="haiku")[-2:] == ["--model", "haiku"]
    assert _arguments(tmp_path, model="--resume")[-1] == "--model=--resume"


def test_what_a_job_or_its_agents_profile_asks_for_comes_after_the_earlier_services_words(
    tmp_path: Path,
) -> None:
    fields = {"max_turns": 3, "effort": "low", "output_schema": {"type": "object"}}
    spec = RunnerHarness.make(
        PlainRunner(CLI, NoSandbox(), NO_REDACTION), tmp_path, "hello", agent="triage", **fields
    ).spec
    spec = replace(spec, agent=Agent("triage", model="sonnet", tools=("Read", "Grep"), max_turns=9))
    words = plain_argv(CLI, spec, Path("/p.md"))
    assert words[words.index("--output-format") + 2 :] == [
        *("--model", "sonnet", "--tools", "Read,Grep", "--max-turns", "3", "--effort", "low"),
        *("--json-schema", '{"type":"object"}', "--append-system-prompt-file", "/p.md"),
    ]
    assert words[1:4] == ["-p", "--agent", "triage"]


def test_the_built_in_chat_is_run_without_tools_and_without_a_name_that_the_cli_does_not_know(
    tmp_path: Path,
) -> None:
    spec = RunnerHarness.make(
        PlainRunner(CLI, NoSandbox(), NO_REDACTION), tmp_path, "hello", agent="chat"
    ).spec
    words = plain_argv(CLI, replace(spec, agent=BUILT_IN_AGENTS["chat"]))
    assert "--agent" not in words
    assert words[words.index("--tools") + 1] == ""


@pytest.mark.parametrize(
    ("printed", "answer"),
    [
        ("plain words\n", "plain words"),
        ('{"result": "", "content": "second", "text": "third"}', "second"),
        ('{"text": "third"}', "third"),
        ('{\n "type": "result",\n "subtype": "success", "result": "many lines"\n}', "many lines"),
        ("[1, 2]", "[1, 2]"),
        ("{braces} are words", "{braces} are words"),
    ],
)
def test_an_output_without_a_result_line_has_its_answer_found(printed: str, answer: str) -> None:
    result = parse_output(printed)
    assert result is not None
    assert (result.text, result.reported, result.is_error) == (answer, OutcomeType.SUCCESS, False)


@pytest.mark.parametrize("printed", ["", " \n", "{}", '{"result": ""}', '{"type":"result","subtype":"suc'])
def test_an_output_that_says_nothing_is_no_answer(printed: str) -> None:
    assert parse_output(printed) is None


@pytest.mark.long
def test_a_gigabyte_of_any_kind_leaves_the_service_within_fifty_megabytes(
    standin: Path, world_dir: Path
) -> None:
    TestPlainRunner().run_flood(standin, world_dir, "1G")


def test_an_agent_that_is_silent_until_its_end_has_not_stalled(standin: Path, world_dir: Path) -> None:
    ran = TestPlainRunner().run_prompt(
        standin, world_dir, "[[standin: sleep=2 text=done]]", idle_timeout_seconds=0.2
    )
    assert ran.outcome == "success"

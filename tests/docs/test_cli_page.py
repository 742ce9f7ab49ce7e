"""The page of the command line has each exit code."""

from tests.docs.pages import table, text_of

from steadyhand.cli.exit_codes import ExitCode


def test_the_page_has_each_exit_code_and_no_other() -> None:
    rows = table(text_of("cli.md"), "| exit code | when |")
    assert [int(code) for code, _ in rows] == [int(code) for code in ExitCode]
    assert all(when for _, when in rows)

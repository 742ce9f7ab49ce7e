"""Prompts on which the stand-in runs commands where its agent is, Python among them."""

import base64

PYTHON = "/usr/bin/python3"


def prompt(*commands: str, more: str = "", answer: str = "{last}") -> str:
    """Give a prompt on which the stand-in runs these shell commands and answers what the last one printed."""
    runs = " ".join(f'run="{_quoted(command)}"' for command in commands)
    return f"[[standin: {runs} {more} text='{answer}']]"


def _quoted(command: str) -> str:
    return command.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")


def python(code: str) -> str:
    """Give a shell command that runs this Python code inside."""
    return f"echo {base64.b64encode(code.encode()).decode()} | base64 -d > ~/c.py && {PYTHON} -I ~/c.py"

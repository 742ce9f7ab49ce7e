"""Prompts on which the stand-in runs commands where its agent is, Python among them."""

import base64

PYTHON = "/usr/bin/python3"


def shell_prompt(*commands: str, options: str = "", answer: str = "{last}") -> str:
    """Return a prompt on which the stand-in runs these shell commands and answers the output of the last one."""
    directives = " ".join(f'run="{_quote(command)}"' for command in commands)
    return f"[[standin: {directives} {options} text='{answer}']]"


def _quote(command: str) -> str:
    return command.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")


def python_command(code: str) -> str:
    """Return a shell command that runs this Python code inside."""
    return f"echo {base64.b64encode(code.encode()).decode()} | base64 -d > ~/c.py && {PYTHON} -I ~/c.py"

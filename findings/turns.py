"""Sends prompts to a process in stream mode, each after the result of the one before: turns.py 'A|B' COMMAND.."""

import json
import subprocess
import sys

prompts, command = sys.argv[1].split("|"), sys.argv[2:]
with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
    assert process.stdin is not None
    assert process.stdout is not None
    for prompt in prompts:
        message = {"type": "user", "message": {"role": "user", "content": prompt}}
        process.stdin.write(json.dumps(message) + "\n")
        process.stdin.flush()
        for line in process.stdout:
            if json.loads(line)["type"] == "result":
                break
    process.stdin.close()
    process.stdout.read()
sys.exit(process.returncode)

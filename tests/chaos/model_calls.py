"""The calls of the model that the agents of a chaos run make, and the check that the ledger has each of them once."""

import base64
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos.faults import Kill

from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.request import ModelRequest

MODEL = "claude-haiku-4-5"
UNSTORED_SECONDS = 1.0
"""A call that ended so shortly before its node was killed may not be in the ledger: its agent has the answer first."""
_PROGRAM = """
import http.client, json, os, sys, time, urllib.request
number, process, notes, model = sys.argv[1:5]
def note(word):
    with open(notes, "a") as file:
        file.write(f"{number} {process} {time.time()} {word}\\n")
prompt = f"job {number} of process {process} at {time.time()}"
body = json.dumps({"model": model, "max_tokens": 64,
    "messages": [{"role": "user", "content": prompt}]}).encode()
headers = {"x-api-key": os.environ["ANTHROPIC_API_KEY"], "content-type": "application/json"}
for attempt in range(60):
    note("asked")
    try:
        request = urllib.request.Request(os.environ["ANTHROPIC_BASE_URL"] + "/v1/messages", body, headers)
        urllib.request.urlopen(request, timeout=20).read()
    except (OSError, http.client.HTTPException):
        time.sleep(0.25)
    else:
        note("answered")
        break
"""
_JOB = re.compile(r"job (\d+) of process")


def call_command(number: int, notes: Path) -> str:
    """Return a shell command by which the agent of a job calls the model once; it tries again if it is cut off."""
    program = base64.b64encode(_PROGRAM.encode()).decode()
    return f"echo {program} | base64 -d | /usr/bin/python3 -I - {number} $$ {shlex.quote(str(notes))} {MODEL}"


class CountingModel(ScriptedModel):
    """A scripted model that also counts the tokens of its answers by the numbers of the jobs."""

    def __init__(self) -> None:
        super().__init__(record=False)
        self._tokens: Counter[int] = Counter()

    def count_tokens(self, request: ModelRequest, usage: dict[str, int]) -> None:
        """Add the tokens of an answer; negative ones are subtracted."""
        super().count_tokens(request, usage)
        found = _JOB.search(request.prompt)
        if found:
            with self._lock:
                self._tokens[int(found[1])] += usage.get("output_tokens", 0)

    def output_tokens(self, number: int) -> int:
        """Return the tokens of the answers to the agents of a job."""
        with self._lock:
            return self._tokens[number]


@dataclass(frozen=True, slots=True)
class Note:
    """An agent of a job began a call of the model (`asked`), or had its answer (`answered`)."""

    job: int
    at: float
    word: str


def read_notes(path: Path) -> list[Note]:
    """Return the notes of all agents; a line that a kill has cut is left out."""
    found = []
    for line in path.read_text().splitlines():
        words = line.split()
        if len(words) == 4:  # as the program above writes them
            found.append(Note(int(words[0]), float(words[2]), words[3]))
    return found


def check_ledger(
    jobs: Mapping[int, Mapping[str, Any]],
    notes: Sequence[Note],
    model: CountingModel,
    counted: Mapping[str, Any],
    kills: Sequence[Kill],
) -> Iterator[str]:
    """Find differences between the ledger and the model's own count.

    `jobs` are the last answers about the jobs by their numbers, `counted` is the sum that the service tells of all
    calls, `kills` are those of nodes. A call is in the ledger before it goes to the model: one
    that a kill cut before it came there stays, as incomplete.
    """
    answered = [note for note in notes if note.word == "answered"]
    unsure = [
        note
        for note in answered
        if any(kill.began - UNSTORED_SECONDS < note.at <= kill.ended for kill in kills)
    ]
    certain = len(answered) - len(unsure)
    cut = sum(note.word == "asked" for note in notes) - len(answered) if kills else 0
    if not certain <= counted["calls"] <= model.calls + cut:
        yield (
            f"the ledger has {counted['calls']} calls: the model was called {model.calls} times, {cut} calls were "
            f"cut, and {certain} answers came long enough before a kill"
        )
    told, sent = counted["usage"]["output_tokens"], model.all_totals.get("output_tokens", 0)
    if told > sent:
        yield f"the ledger has {told} tokens, and the model sent {sent}"
    asked = Counter(note.job for note in notes if note.word == "asked")
    unsettled = (asked - Counter(note.job for note in answered)).keys() | {note.job for note in unsure}
    for number, job in jobs.items():
        is_whole = job["state"] == "completed" and all(run["state"] == "completed" for run in job["runs"])
        told = job["cost"]["source"], job["usage"]["output_tokens"]
        if is_whole and number not in unsettled and told != ("ledger", model.output_tokens(number)):
            yield f"job {number}: {told[1]} tokens by the {told[0]}, and the model sent {model.output_tokens(number)}"

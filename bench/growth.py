"""How the figure of each row grows, and what bounds it: one sentence a row, for the page on performance."""

from __future__ import annotations

from collections.abc import Mapping

GROWTH: Mapping[str, str] = {
    "jobs-p50": "Does not grow with the jobs, but with the jobs on the page; writing them as JSON bounds it.",
    "jobs-p99": "Grows with the combinations of key, agent and workspace, for metadata without a key; their number "
    "bounds it.",
    "jobs-eight": "Grows with the callers, as each takes its turn on one core of the service.",
    "jobs-eight-empty": "Does not grow with the jobs, but with those on the page: an empty store has none.",
    "jobs-beside": "Grows with the callers, as each takes its turn on one core of the service.",
    "usage": "Grows with the combinations of key, agent, model and provider in a month, and with the days if they are "
    "asked for; days that are cut grow with their calls.",
    "start-history": "Does not grow with the ended jobs, but with those that wait; importing the code bounds it.",
    "retention": "Constant for each deleted job; its files and half a second in each one and a half bound it.",
    "accept": "The rate does not depend on the jobs that wait; one core of the service bounds it, and above 16 "
    "connections the time of one write to the disk.",
    "start-stream": "Constant for each job; the start of the agent's process bounds it.",
    "start-plain": "Constant for each job; the start of the agent's process bounds it.",
    "answer": "Constant for each job; the processor time of the CLI's own start bounds it.",
    "answer-sealed": "Constant for each job; the processor time of the CLI's own start bounds it.",
    "gateway-ttft": "Grows with the streams that are open, as each takes its turn on one core.",
    "gateway-ttft-p99": "Grows with the streams that are open, as each takes its turn on one core.",
    "gateway-cpu": "Grows with the events of a stream, not with their bytes; one core bounds all streams.",
    "health": "Grows with the load of the machine: an attack shares the cores, and its limits bound its share.",
    "half-open": "Grows with new connections a second; the limit of connections and their deadline bound it.",
    "startup": "Does not grow with the jobs that are stored: the import of the program bounds it.",
    "memory-rest": "Constant: the modules of the program.",
    "memory-job": "Grows with the jobs that run at once, each by the same: buffers of its streams, and a supervisor.",
    "cold-first": "Constant for each job; the processor time of the CLI's own start bounds it.",
    "sandbox": "Constant for each run: namespaces, mounts and control groups are made anew.",
    "checkout": "Does not grow with the repository: the files are a layer that jobs share.",
    "checkout-growth": "Does not grow with the repository: the files are a layer that jobs share.",
    "warm-first": "Constant for each job as long as a process waits; without one it is the time of a cold start.",
    "warm-tools-seen": "As `warm-first`; the processes that wait bound the system prompts that are ready at once.",
    "warm-tools-new": "Constant for each job: the CLI reads the system prompt and the tools of a job once it is there.",
    "warm-whole": "Grows with the change that is harvested, not with the tree; the agent's turn bounds it.",
    "warm-idle": "Constant: a waiting process is stopped and takes no processor time.",
    "warm-memory": "Grows with the waiting processes; `service.warm_memory` bounds it.",
    "followers-p95": "Grows with the followers, as each gets its bytes on one core; an event is rendered once for all.",
    "followers-cpu": "Constant for each follower and piece: the copy of the bytes to its connection.",
    "chats-p50": "Grows with the chats, as each takes its turn on one core.",
    "chats-p95": "Grows with the chats, as each takes its turn on one core.",
    "redaction-index": "Grows with the secrets of a run, not with the runs beside it.",
    "redaction-held": "Constant: text waits only where a secret may begin.",
    "answer-git": "Grows with the change that is harvested, not with the tree; the CLI's own start bounds it.",
    "cpu-git": "Constant for each job, and grows with the change that is harvested.",
    "harvest-unchanged": "Does not grow with the tree: the upper layer tells that nothing changed.",
    "harvest-growth": "Grows with the change, not with the tree.",
    "harvest-new": "Grows with the new files: git hashes, packs and checks each of them.",
}

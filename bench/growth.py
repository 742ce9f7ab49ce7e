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
    "accept-postgres": "As `accept`; the statements of a commit go to the server one by one, and one core of the "
    "service bounds them.",
    "start-stream": "Constant for each job; the start of the agent's process bounds it.",
    "start-plain": "Constant for each job; the start of the agent's process bounds it.",
    "answer": "Constant for each job; the processor time of the CLI's own start bounds it.",
    "answer-sealed": "Constant for each job; the processor time of the CLI's own start bounds it.",
    "gateway-ttft": "Grows with the streams that are open, as each takes its turn on one core.",
    "gateway-ttft-p99": "Grows with the streams that are open, as each takes its turn on one core.",
    "gateway-cpu": "Grows with the events of a stream, not with their bytes; one core bounds all streams.",
    **{
        f"gateway-{row}-{wire}": f"As `gateway-{row}`."
        for row in ("ttft", "ttft-p99", "cpu")
        for wire in ("responses", "chat", "gemini")
    },
    "codex-start": "Constant for each run; the start of the agent's process bounds it.",
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
    "live-first": "Does not grow with the conversation on our side: the process holds it; the model reads all of it.",
    "reuse-rate": "Does not grow with the callers: the processor time of the CLI's turns and resets bounds it.",
    "warm-whole": "Grows with the change that is harvested, not with the tree; the agent's turn bounds it.",
    "live-git-first": "Grows with the refs that moved since the turn before; the CLI's own git commands bound it.",
    "warm-pressure": "Constant: the pool looks at the memory every half second, and all processes end at once.",
    "warm-idle": "Constant: a waiting process is stopped and takes no processor time.",
    "warm-memory": "Grows with the waiting processes; `service.warm_memory` bounds it.",
    "followers-p95": "Grows with the followers, as each gets its bytes on one core; an event is rendered once for all.",
    "followers-cpu": "Constant for each follower and piece: the copy of the bytes to its connection.",
    "chats-p50": "Grows with the chats, as each takes its turn on one core.",
    "chats-p95": "Grows with the chats, as each takes its turn on one core.",
    "page-p95": "Grows with the messages a second and the browsers that watch each job; one core bounds it.",
    "page-tab": "Grows as `page-p95`; the browser's own work for a message is constant.",
    "page-cpu": "Grows with the messages a second, each stored and rendered once, and a little with each browser.",
    "thousand-p95": "Grows with the followers, as each gets its bytes on one core; an event is rendered once for all.",
    "thousand-memory": "Constant for each follower: its connection, its place in the feed and its task.",
    "long-paint": "Does not grow with the events: the page begins with the newest 400.",
    "long-scroll": "Grows with the items on the screen: the browser leaves out what is not in sight.",
    "redaction-index": "Grows with the secrets of a run, not with the runs beside it.",
    "redaction-held": "Constant: text waits only where a secret may begin.",
    "answer-git": "Grows with the change that is harvested, not with the tree; the CLI's own start bounds it.",
    "cpu-git": "Constant for each job, and grows with the change that is harvested.",
    "harvest-unchanged": "Does not grow with the tree: the upper layer tells that nothing changed.",
    "harvest-growth": "Grows with the change, not with the tree.",
    "harvest-new": "Grows with the new files: git hashes, packs and checks each of them.",
    "cluster-start": "Constant on an idle cluster: one transaction chooses the job, one begins its run.",
    "cluster-start-p99": "As `cluster-start`; the flushes of the database's disk bound it.",
    "cluster-cancel": "Constant: one notification, and the first step of the stop.",
    "node-events": "Constant for each event: one notification, and one read for all followers on a node.",
    "node-events-p99": "As `node-events`; the flushes of the database's disk bound it.",
    "cluster-rate": "Grows with the workers until the transactions of the queue, one after the other, or the "
    "cores of the machine bound it.",
    "cluster-idle-statements": "Constant for each node: its lease, and the heartbeat of the engine.",
    "cluster-idle-cpu": "Constant for each node; a change of any node is read by all.",
    "budget-shares": "One transaction for 12 calls far below the limit, and one for each call near it.",
}

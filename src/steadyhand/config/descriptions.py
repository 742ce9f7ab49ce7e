"""One sentence for each setting, by its dotted name; `*` is a name that the operator chooses.

`docs/settings.md` and `steadyhand config --template` are made from these and from the types. A test holds that each
setting has one.
"""

from collections.abc import Mapping

DESCRIPTIONS: Mapping[str, str] = {
    "service.concurrency": "The jobs that run at once; 0 leaves them to other nodes on the same database of Postgres.",
    "service.max_waiting_runs": (
        "The processes that may wait for results of their clients' tools beside the jobs that run; by default "
        "twice `concurrency`. Each holds about 100 MB. Above it the one that waits longest is ended; its session "
        "takes the results."
    ),
    "service.max_waiting_runs_per_key": "The same for one key. At this number new jobs with tools are refused.",
    "service.max_queued": "The jobs that may wait; a request above it gets 429.",
    "service.drain_seconds": "The time that running jobs get to end by themselves when the service stops.",
    "service.reattach_seconds": (
        "How long a run goes on without its service, until the next one takes it up; 0 ends it with the service. "
        "See docs/architecture.md."
    ),
    "service.data_dir": "The directory of the service's data. The default is `/var/lib/steadyhand` for root, else "
    "`~/.local/share/steadyhand`.",
    "service.database_url": "The database, `sqlite:///path` or `postgresql://..`; by default `steadyhand.db` in the "
    "data directory.",
    "service.database_listen_url": "The address of the same Postgres for notifications, which need a connection to the "
    "server itself; by default `database_url`. Set it if PgBouncer stands between.",
    "service.isolation": "The sandbox of agents; `none` lets them do all that their user can do.",
    "service.profile": "`classic` behaves as the earlier service did.",
    "service.agent_uid_base": "The first uid of agents, if the service is root.",
    "service.warm_memory": (
        "The memory of all processes that wait for jobs (`agents.NAME.warm`) or for the next turn "
        "(`agents.NAME.live_seconds`); each takes about 100 MB. Those that wait for results of their clients' tools "
        "share it, within `max_waiting_runs`."
    ),
    "service.node": (
        "The name of this service in the runs of jobs. Services on one database of Postgres need a name each."
    ),
    "service.labels": "The labels of this node, such as `gpu` or `zone=a`. Agents and jobs may ask for them.",
    "service.paused": "Accept jobs and start none.",
    "service.log_level": "The lowest level of log lines. Each job and request has lines at `info`.",
    "service.log_format": "The form of log lines; `auto` is text on a terminal and JSON elsewhere.",
    "service.metrics_bind": (
        "An address and a port of their own for `/metrics`, such as `127.0.0.1:9464`. It asks for no key and shows all "
        "metrics. The service's port has `/metrics` for keys with the scope `read`, with or without this."
    ),
    "server.host": "The address to listen on.",
    "server.port": "The port to listen on; 0 takes a free one.",
    "server.public_url": "The address under which callers reach the service, for links.",
    "server.allowed_hosts": "The values of the `Host` header that are accepted beside the service's own address.",
    "server.max_body_bytes": "The size of the largest request.",
    "server.cors_origins": "The origins of web pages that may call the service from a browser; none by default.",
    "server.max_connections": "The connections that may be open at once; by default by the limit of open files.",
    "server.max_connections_per_address": "The connections that one address may have open at once.",
    "defaults.agent": "The agent of a job that names none.",
    "defaults.workspace": "The workspace of a job that names none; else the one that is called `default`.",
    "defaults.budget_usd": "The budget of a job in dollars.",
    "defaults.timeout_seconds": "The time that a job may run.",
    "defaults.idle_timeout_seconds": "The time that an agent may be silent.",
    "defaults.background_seconds": "The time after a result that an agent's work in the background may still run.",
    "defaults.on_interrupt": "What a start does with a job that the last stop interrupted.",
    "defaults.publish": "`branch` pushes the job's commits as `steadyhand/<job>`.",
    "defaults.memory": "The memory of an agent; `none` is no limit.",
    "defaults.processes": "The processes of an agent; `none` is no limit.",
    "defaults.disk": "The size of an agent's checkout and home; `none` is no limit.",
    "limits.max_budget_usd": "The highest budget that a job may ask for.",
    "limits.max_timeout_seconds": "The longest time that a job may ask for.",
    "limits.service_per_day_usd": "The dollars that all jobs may spend in a day of UTC.",
    "retention.jobs": "The time for which ended jobs are kept; `never` keeps them for good.",
    "retention.transcripts": "The time for which transcripts are kept.",
    "retention.kept_checkouts": "The time for which the checkout of a job is kept for a run that resumes it.",
    "retention.max_bytes": "The size of all kept files; the oldest go first.",
    "artifacts.url": "The object store for the files of jobs, `file:///path`, `s3://bucket/path`, `gs://..` or "
    "`az://..`; see docs/postgres.md. Without it, the files are in the database if that is Postgres, else on this "
    "machine alone.",
    "artifacts.database_bytes": "The largest file that is stored in the database; larger ones are objects.",
    "artifacts.options": "The options of the object store, such as `aws_endpoint=https://s3.example.org`.",
    "git.author_name": "The name in commits of the service.",
    "git.author_email": "The address in commits of the service.",
    "git.credential_file": "The service's credentials for https repositories, as `git credential-store` has them.",
    "git.ssh_key_file": "The service's key for ssh repositories.",
    "git.ca_file": "Certificates of authorities for https repositories.",
    "providers.*.kind": "The kind of provider; see docs/gateway.md.",
    "providers.*.base_url": "The provider's address, if it is not the usual one. `openai-compatible` needs one.",
    "providers.*.api_key_file": "The file of an API key.",
    "providers.*.oauth_token_file": "The file of a subscription's token or of an access token.",
    "providers.*.header": "The header that carries the key, if it is not the usual one.",
    "providers.*.region": "The region, for `bedrock` and `vertex`.",
    "providers.*.project": "The project, for `vertex`.",
    "gateway.max_wait_seconds": "The longest single wait for a busy model; a longer one parks the job.",
    "gateway.budget_near": "The share of a budget of a key, an agent or the service at which `budget.near` tells that "
    "it is nearly spent.",
    "gateway.max_waits_seconds": "The longest wait for a busy model in all attempts of one call.",
    "prices.*": "The prices of a model, or as `provider/model` at one provider alone, which replace the built-in ones; "
    "see docs/gateway.md.",
    "runner.claude.path": "The path of the agent's command line; by default the bundled one.",
    "runner.codex.path": "The path of the program of Codex; by default that of `steadyhand agents install codex`.",
    "runner.kimi.path": "The path of Kimi Code, a script; by default that of `steadyhand agents install kimi`.",
    "runner.kimi.node": "The path of Node 22 or newer; by default the one in the service's `PATH`.",
    "runner.opencode.path": "The path of the program of opencode; by default that of "
    "`steadyhand agents install opencode`.",
    "runner.claude-agent-acp.path": "The path of claude-agent-acp, a script; by default that of "
    "`steadyhand agents install claude-agent-acp`.",
    "runner.claude-agent-acp.node": "The path of Node 22 or newer; by default the one in the service's `PATH`.",
    "runners.*.path": "The path of the program of an agent that speaks ACP; its agents have this table's name as their "
    "`runner`.",
    "runners.*.node": "The path of Node, if the program is a script that it runs.",
    "runners.*.api": "The API by which it asks its model.",
    "runners.*.arguments": "The arguments of the program.",
    "runners.*.env": "Variables of the program, with the placeholders `{base_url}`, `{key}`, `{model}`, `{home}` and "
    "`{cache}`.",
    "runners.*.files": "Texts of files by their paths in its home, written before each run, with the "
    "same placeholders.",
    "runners.*.mode": "The mode that its sessions are set to.",
    "runners.*.load_sessions": "Whether a later turn loads the stored session; else it begins a new one.",
    "openai.default_agent": "The agent of OpenAI requests whose model is no alias and no agent.",
    "openai.tool_result_seconds": "The time that an agent waits for the results of a client's tools.",
    "openai.models.*.agent": "The agent that answers for this model name.",
    "openai.models.*.model": "The model that it uses.",
    "openai.models.*.reasoning": "The `reasoning_content` of a chat: the model's `thinking`, the calls of the agent's "
    "own `tools`, or `all`.",
    "callbacks.allow": "Receivers of callbacks that are not public or not on port 80 or 443, such as `n8n:5678`, "
    "`10.0.0.5:5678` or `*.internal.example`; an entry without a port means 80 and 443.",
    "callbacks.max_in_flight": "The callbacks that are sent at once; at most 4 of them to one receiver.",
    "callbacks.timeout_seconds": "The time that a receiver has for its answer.",
    "callbacks.secret_file": "The secret from which each key's secret for signatures is made; by default "
    "`callbacks.key` in the data directory, which the first use creates.",
    "callbacks.endpoints.*.url": "The address of the receiver; `steadyhand config` shows its host alone.",
    "callbacks.endpoints.*.events": "The events that it is told of: `job.ended`, `job.parked`, `job.needs_results`, "
    "`budget.near`, `schedule.paused`.",
    "callbacks.endpoints.*.agents": "The agents of whose jobs it is told; without it, all.",
    "callbacks.endpoints.*.secret_file": "The secret that signs, `whsec_` and base64; of several lines each signs.",
    "callbacks.endpoints.*.body": "`thin` has ids and links, `full` the whole job, `openai` is OpenAI's event about a "
    "response in the background, and nothing else is told then.",
    "notify.*.url": "The address in the form of apprise, such as `ntfys://ntfy.example.org/topic`; "
    "`steadyhand config` shows its scheme alone.",
    "notify.*.url_file": "The file with the address, in place of `url`.",
    "notify.*.events": "The events that it is told of.",
    "notify.*.agents": "The agents of whose jobs it is told; without it, all.",
    "notify.*.keys": "The names or ids of the keys of whose jobs it is told; without it, all.",
    "notify.*.outcomes": "The outcomes of ended jobs that it is told of, such as `agent_error` or `budget`; "
    "without it, all.",
    "notify.*.quiet_hours": "The hours in which nothing is sent, such as `22:00-07:00`.",
    "notify.*.timezone": "The time zone of the quiet hours, such as `Europe/Berlin`.",
    "notify.*.in_quiet_hours": "`hold` sends what falls into the quiet hours at their end, `drop` never.",
    "schedules.*.cron": "The times as a cron expression of five fields, or of six with seconds first; also `@daily`. "
    "See docs/schedules.md.",
    "schedules.*.timezone": "The time zone of the expression, such as `Europe/Berlin`.",
    "schedules.*.key": "The id or the name of the key that the jobs belong to; by default the service's own key. Its "
    "scopes and limits hold.",
    "schedules.*.prompt": "The prompt of each job. It may have fields such as `{{ tick.date }}`.",
    "schedules.*.agent": "The agent of the jobs.",
    "schedules.*.title": "The title of the jobs; it may have the fields of the prompt.",
    "schedules.*.workspace": "The workspace of the jobs.",
    "schedules.*.ref": "The branch, tag or commit of the jobs.",
    "schedules.*.model": "The model of the jobs.",
    "schedules.*.budget_usd": "The budget of each job in dollars.",
    "schedules.*.timeout_seconds": "The time that each job may run.",
    "schedules.*.idle_timeout_seconds": "The time that the agent may be silent.",
    "schedules.*.labels": "The labels that a node must have to run the jobs, beside those of the agent.",
    "schedules.*.not_on_nodes": "The names of nodes that do not run the jobs, beside those of the agent.",
    "schedules.*.expires_in_seconds": "The time that each job may wait in the queue.",
    "schedules.*.priority": "The priority of the jobs.",
    "schedules.*.max_turns": "The turns of the model in one run.",
    "schedules.*.effort": "The effort of the model.",
    "schedules.*.append_system_prompt": "Text after the agent's own system prompt.",
    "schedules.*.publish": "As `defaults.publish`, for these jobs.",
    "schedules.*.on_interrupt": "As `defaults.on_interrupt`, for these jobs.",
    "schedules.*.metadata": "The metadata of the jobs.",
    "schedules.*.overlap": "What becomes of a tick while an earlier job goes on: `skip`, `queue` to wait for its end, "
    "or `cancel_running`.",
    "schedules.*.missed": "The missed ticks that fire after a stop: the last one (`once`), the last 10 (`all`) or "
    "`none`.",
    "schedules.*.max_usd": "The dollars that all jobs of the schedule may cost; then it pauses itself.",
    "schedules.*.max_runs": "The number of jobs after which the schedule pauses itself.",
    "schedules.*.max_failures": "The failures in a row after which the schedule pauses itself.",
    "telemetry.endpoint": "The receiver of OTLP over HTTP, such as `http://127.0.0.1:4318`; without it "
    "`OTEL_EXPORTER_OTLP_ENDPOINT`. See docs/telemetry.md.",
    "telemetry.headers_file": "A file with headers for the receiver, each on a line as `name: value`.",
    "telemetry.traces": "Export the spans of jobs.",
    "telemetry.metrics": "Export the metrics of docs/metrics.md.",
    "telemetry.content": "Export prompts, answers, and the arguments and output of tools too, without known secrets.",
    "telemetry.stop_seconds": "The time that a stop of the service waits for the last export.",
    "workspaces.*.repository": "The repository: an https, ssh or file URL, or a path.",
    "workspaces.*.ref": "The branch, tag, commit or other ref of jobs that name none; else the default branch.",
    "workspaces.*.mode": "`in_place` works in the directory itself, one job at a time.",
    "workspaces.*.trust": "What is read of the repository: its agents and instructions, or all of its settings.",
    "workspaces.*.trusted_refs": "The refs to which `trust` applies; for others it is less. Foreign ones: full names.",
    "workspaces.*.setup": "Commands that prepare a checkout, run once per commit in the sandbox.",
    "workspaces.*.setup_secrets": "Secret files that `setup` may read.",
    "workspaces.*.submodules": "Fetch the submodules of the commit, from the repository's own host and `fetch_hosts`.",
    "workspaces.*.lfs": "Fetch the files of Git LFS, from the server of the repository's own host or of `fetch_hosts`.",
    "workspaces.*.fetch_hosts": "More hosts for submodules and Git LFS, such as `github.com` or "
    "`git.example.org:8443`; the service's credentials for them are used.",
    "workspaces.*.setup_egress": "Hosts that `setup` may reach; `*.example.org` does not cover `example.org` itself.",
    "workspaces.*.publish": "As `defaults.publish`, for this workspace.",
    "workspaces.*.caches": "Package caches that the jobs of this workspace share.",
    "agents.*.description": "A sentence for people.",
    "agents.*.runner": "The agent's program.",
    "agents.*.provider": "The provider of its model.",
    "agents.*.workspace": "Its workspace, if a job names none.",
    "agents.*.model": "Its model, if a job names none.",
    "agents.*.budget_usd": "The budget of its jobs in dollars, if a job names none.",
    "agents.*.budget_per_day_usd": "The dollars that all its jobs may spend in a day of UTC.",
    "agents.*.max_budget_usd": "The highest budget in dollars that a job of the agent may ask for.",
    "agents.*.max_timeout_seconds": "The longest time that a job of the agent may ask for.",
    "agents.*.models": "The models that a job of the agent may name; without it, any. A job that names none has "
    "`model`, else the first of them.",
    "agents.*.timeout_seconds": "The time that its jobs may run, if a job names none.",
    "agents.*.idle_timeout_seconds": "The time that it may be silent, if a job names none.",
    "agents.*.tools": "Its tools; without it, all of them.",
    "agents.*.background_seconds": "The time after a result that its work in the background may still run.",
    "agents.*.max_turns": "The turns of the model in one run.",
    "agents.*.effort": "The effort of the model.",
    "agents.*.append_system_prompt": "Text after the agent's own system prompt.",
    "agents.*.env": "Variables of its environment.",
    "agents.*.secrets": "Secret files that it may read.",
    "agents.*.egress": "Hosts beside the model that it may reach; `*.example.org` is all below `example.org` and not "
    "`example.org` itself; `host` is this machine's network.",
    "agents.*.memory": "As `defaults.memory`, for this agent.",
    "agents.*.processes": "As `defaults.processes`, for this agent.",
    "agents.*.disk": "As `defaults.disk`, for this agent.",
    "agents.*.live_seconds": (
        "The time that the process of a job stays after it for the next turn of the conversation."
    ),
    "agents.*.labels": "The labels that a node must have to run its jobs.",
    "agents.*.not_on_nodes": "The names of nodes that do not run its jobs.",
    "agents.*.warm": "The processes that wait for jobs of this agent; `auto` follows the jobs of the last hours.",
    "agents.*.lean": "Leave out of its context what a turn does not need: the CLI's memory and the state of the "
    "machine; with `tools = []` the CLI's own system prompt, too.",
}

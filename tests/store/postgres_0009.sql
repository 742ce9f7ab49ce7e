CREATE TABLE public.alembic_version (
    version_num character varying(32) NOT NULL
);
CREATE TABLE public.callback_endpoints (
    name text NOT NULL COLLATE pg_catalog."C",
    url text NOT NULL COLLATE pg_catalog."C",
    events text NOT NULL COLLATE pg_catalog."C",
    agents text NOT NULL COLLATE pg_catalog."C",
    body text NOT NULL COLLATE pg_catalog."C",
    secrets text NOT NULL COLLATE pg_catalog."C",
    created_at bigint NOT NULL
);
CREATE TABLE public.calls (
    id text NOT NULL COLLATE pg_catalog."C",
    job_id text NOT NULL COLLATE pg_catalog."C",
    run bigint NOT NULL,
    api_key_id text NOT NULL COLLATE pg_catalog."C",
    agent text NOT NULL COLLATE pg_catalog."C",
    provider text NOT NULL COLLATE pg_catalog."C",
    model text NOT NULL COLLATE pg_catalog."C",
    at bigint NOT NULL,
    day bigint NOT NULL,
    settled bigint NOT NULL,
    reserved_micros bigint NOT NULL,
    micros bigint NOT NULL,
    input bigint NOT NULL,
    output bigint NOT NULL,
    cache_read bigint NOT NULL,
    cache_write_5m bigint NOT NULL,
    cache_write_1h bigint NOT NULL,
    priced bigint NOT NULL,
    complete bigint NOT NULL,
    status bigint,
    source text NOT NULL COLLATE pg_catalog."C",
    workspace text DEFAULT ''::text NOT NULL COLLATE pg_catalog."C"
);
CREATE TABLE public.deliveries (
    sequence bigint NOT NULL,
    id text NOT NULL COLLATE pg_catalog."C",
    job bigint NOT NULL,
    endpoint text COLLATE pg_catalog."C",
    circuit text NOT NULL COLLATE pg_catalog."C",
    type text NOT NULL COLLATE pg_catalog."C",
    state text NOT NULL COLLATE pg_catalog."C",
    behind bigint NOT NULL,
    created_at bigint NOT NULL,
    due_at bigint NOT NULL,
    expires_at bigint NOT NULL,
    attempts bigint NOT NULL,
    attempted_at bigint,
    status bigint,
    error text COLLATE pg_catalog."C",
    url text COLLATE pg_catalog."C",
    body text NOT NULL COLLATE pg_catalog."C"
);
CREATE SEQUENCE public.deliveries_sequence_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.deliveries_sequence_seq OWNED BY public.deliveries.sequence;
CREATE TABLE public.events (
    job bigint NOT NULL,
    seq bigint NOT NULL,
    run bigint NOT NULL,
    at bigint NOT NULL,
    type text NOT NULL COLLATE pg_catalog."C",
    data text NOT NULL COLLATE pg_catalog."C"
);
CREATE TABLE public.idempotency (
    api_key_id text NOT NULL COLLATE pg_catalog."C",
    key text NOT NULL COLLATE pg_catalog."C",
    fingerprint text NOT NULL COLLATE pg_catalog."C",
    job bigint NOT NULL,
    created_at bigint NOT NULL
);
CREATE TABLE public.job_groups (
    id bigint NOT NULL,
    api_key_id text NOT NULL COLLATE pg_catalog."C",
    agent text NOT NULL COLLATE pg_catalog."C",
    workspace text COLLATE pg_catalog."C"
);
CREATE SEQUENCE public.job_groups_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.job_groups_id_seq OWNED BY public.job_groups.id;
CREATE TABLE public.job_tags (
    tag bigint NOT NULL,
    group_id bigint NOT NULL,
    job bigint NOT NULL
);
CREATE TABLE public.job_texts (
    job bigint NOT NULL,
    words tsvector NOT NULL
);
CREATE TABLE public.job_zones (
    zone bigint NOT NULL,
    first_created bigint NOT NULL,
    last_created bigint NOT NULL
);
CREATE TABLE public.jobs (
    sequence bigint NOT NULL,
    id text NOT NULL COLLATE pg_catalog."C",
    state text NOT NULL COLLATE pg_catalog."C",
    api_key_id text NOT NULL COLLATE pg_catalog."C",
    agent text NOT NULL COLLATE pg_catalog."C",
    workspace text COLLATE pg_catalog."C",
    created_at bigint NOT NULL,
    finished_at bigint,
    metadata text COLLATE pg_catalog."C",
    session_id text COLLATE pg_catalog."C",
    session_name text COLLATE pg_catalog."C",
    conversation text COLLATE pg_catalog."C",
    record text NOT NULL COLLATE pg_catalog."C",
    structured_output text COLLATE pg_catalog."C",
    history text COLLATE pg_catalog."C",
    answer text COLLATE pg_catalog."C",
    prompt text NOT NULL COLLATE pg_catalog."C"
);
CREATE SEQUENCE public.jobs_sequence_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.jobs_sequence_seq OWNED BY public.jobs.sequence;
CREATE TABLE public.keys (
    id text NOT NULL COLLATE pg_catalog."C",
    name text NOT NULL COLLATE pg_catalog."C",
    digest text NOT NULL COLLATE pg_catalog."C",
    scopes text NOT NULL COLLATE pg_catalog."C",
    created_at bigint NOT NULL,
    limits text COLLATE pg_catalog."C",
    revoked_at bigint,
    former_digest text COLLATE pg_catalog."C",
    former_until bigint
);
CREATE TABLE public.progress (
    name text NOT NULL COLLATE pg_catalog."C",
    value bigint NOT NULL
);
CREATE TABLE public.run_outputs (
    job bigint NOT NULL,
    run bigint NOT NULL,
    output text NOT NULL COLLATE pg_catalog."C",
    stderr text NOT NULL COLLATE pg_catalog."C"
);
CREATE TABLE public.runs (
    job bigint NOT NULL,
    number bigint NOT NULL,
    state text NOT NULL COLLATE pg_catalog."C",
    outcome text COLLATE pg_catalog."C",
    started_at bigint,
    finished_at bigint,
    exit_code bigint,
    node text COLLATE pg_catalog."C",
    supervisor bigint,
    supervisor_started bigint
);
CREATE TABLE public.saved_items (
    api_key_id text NOT NULL COLLATE pg_catalog."C",
    kind text NOT NULL COLLATE pg_catalog."C",
    name text NOT NULL COLLATE pg_catalog."C",
    content text NOT NULL COLLATE pg_catalog."C",
    saved_at bigint NOT NULL
);
CREATE TABLE public.usage_sums (
    level bigint NOT NULL,
    api_key_id text NOT NULL COLLATE pg_catalog."C",
    start bigint NOT NULL,
    agent text NOT NULL COLLATE pg_catalog."C",
    model text NOT NULL COLLATE pg_catalog."C",
    provider text NOT NULL COLLATE pg_catalog."C",
    workspace text DEFAULT ''::text NOT NULL COLLATE pg_catalog."C",
    calls bigint NOT NULL,
    input bigint NOT NULL,
    output bigint NOT NULL,
    cache_read bigint NOT NULL,
    cache_write_5m bigint NOT NULL,
    cache_write_1h bigint NOT NULL,
    micros bigint NOT NULL,
    unpriced bigint NOT NULL,
    incomplete bigint NOT NULL
);
ALTER TABLE ONLY public.deliveries ALTER COLUMN sequence SET DEFAULT nextval('public.deliveries_sequence_seq'::regclass);
ALTER TABLE ONLY public.job_groups ALTER COLUMN id SET DEFAULT nextval('public.job_groups_id_seq'::regclass);
ALTER TABLE ONLY public.jobs ALTER COLUMN sequence SET DEFAULT nextval('public.jobs_sequence_seq'::regclass);
ALTER TABLE ONLY public.alembic_version
    ADD CONSTRAINT alembic_version_pkey PRIMARY KEY (version_num);
ALTER TABLE ONLY public.callback_endpoints
    ADD CONSTRAINT pk_callback_endpoints PRIMARY KEY (name);
ALTER TABLE ONLY public.calls
    ADD CONSTRAINT pk_calls PRIMARY KEY (id);
ALTER TABLE ONLY public.deliveries
    ADD CONSTRAINT pk_deliveries PRIMARY KEY (sequence);
ALTER TABLE ONLY public.events
    ADD CONSTRAINT pk_events PRIMARY KEY (job, seq);
ALTER TABLE ONLY public.idempotency
    ADD CONSTRAINT pk_idempotency PRIMARY KEY (api_key_id, key);
ALTER TABLE ONLY public.job_groups
    ADD CONSTRAINT pk_job_groups PRIMARY KEY (id);
ALTER TABLE ONLY public.job_tags
    ADD CONSTRAINT pk_job_tags PRIMARY KEY (tag, group_id, job);
ALTER TABLE ONLY public.job_texts
    ADD CONSTRAINT pk_job_texts PRIMARY KEY (job);
ALTER TABLE ONLY public.job_zones
    ADD CONSTRAINT pk_job_zones PRIMARY KEY (zone);
ALTER TABLE ONLY public.jobs
    ADD CONSTRAINT pk_jobs PRIMARY KEY (sequence);
ALTER TABLE ONLY public.keys
    ADD CONSTRAINT pk_keys PRIMARY KEY (id);
ALTER TABLE ONLY public.progress
    ADD CONSTRAINT pk_progress PRIMARY KEY (name);
ALTER TABLE ONLY public.run_outputs
    ADD CONSTRAINT pk_run_outputs PRIMARY KEY (job, run);
ALTER TABLE ONLY public.runs
    ADD CONSTRAINT pk_runs PRIMARY KEY (job, number);
ALTER TABLE ONLY public.saved_items
    ADD CONSTRAINT pk_saved_items PRIMARY KEY (api_key_id, kind, name);
ALTER TABLE ONLY public.usage_sums
    ADD CONSTRAINT pk_usage_sums PRIMARY KEY (level, api_key_id, start, agent, model, provider, workspace);
CREATE INDEX ix_calls_day ON public.calls USING btree (day, at);
CREATE INDEX ix_calls_job_id ON public.calls USING btree (job_id);
CREATE INDEX ix_calls_settled ON public.calls USING btree (id) WHERE (settled = 0);
CREATE INDEX ix_deliveries_due ON public.deliveries USING btree (circuit, due_at) WHERE ((state = 'pending'::text) AND (behind = 0));
CREATE INDEX ix_deliveries_job ON public.deliveries USING btree (job, state);
CREATE INDEX ix_idempotency_created_at ON public.idempotency USING btree (created_at);
CREATE INDEX ix_idempotency_job ON public.idempotency USING btree (job);
CREATE INDEX ix_job_texts_words ON public.job_texts USING gin (words);
CREATE INDEX ix_jobs_agent ON public.jobs USING btree (agent, sequence);
CREATE INDEX ix_jobs_api_key_id ON public.jobs USING btree (api_key_id, sequence);
CREATE INDEX ix_jobs_at_start ON public.jobs USING btree (sequence) WHERE ((state = 'interrupted'::text) AND (strpos(record, '"at_start":"'::text) > 0));
CREATE INDEX ix_jobs_conversation ON public.jobs USING btree (conversation, api_key_id, sequence) WHERE (conversation IS NOT NULL);
CREATE INDEX ix_jobs_finished_at ON public.jobs USING btree (finished_at, sequence) WHERE (finished_at IS NOT NULL);
CREATE INDEX ix_jobs_group ON public.jobs USING btree (api_key_id, agent, COALESCE(workspace, ''::text), state, sequence);
CREATE INDEX ix_jobs_session_id ON public.jobs USING btree (session_id, sequence) WHERE (session_id IS NOT NULL);
CREATE INDEX ix_jobs_session_name ON public.jobs USING btree (session_name, api_key_id, sequence) WHERE (session_name IS NOT NULL);
CREATE INDEX ix_jobs_state ON public.jobs USING btree (state, sequence);
CREATE INDEX ix_jobs_turns ON public.jobs USING btree (sequence) WHERE ((state = ANY (ARRAY['queued'::text, 'running'::text])) AND (strpos(record, '"parent_job_id":"'::text) > 0));
CREATE INDEX ix_jobs_workspace ON public.jobs USING btree (workspace, sequence) WHERE (workspace IS NOT NULL);
CREATE UNIQUE INDEX uq_deliveries_id ON public.deliveries USING btree (id);
CREATE UNIQUE INDEX uq_job_groups_names ON public.job_groups USING btree (api_key_id, agent, COALESCE(workspace, ''::text));
CREATE UNIQUE INDEX uq_jobs_id ON public.jobs USING btree (id);
ALTER TABLE ONLY public.deliveries
    ADD CONSTRAINT fk_deliveries_job FOREIGN KEY (job) REFERENCES public.jobs(sequence) ON DELETE CASCADE;
ALTER TABLE ONLY public.events
    ADD CONSTRAINT fk_events_job FOREIGN KEY (job) REFERENCES public.jobs(sequence) ON DELETE CASCADE;
ALTER TABLE ONLY public.idempotency
    ADD CONSTRAINT fk_idempotency_job FOREIGN KEY (job) REFERENCES public.jobs(sequence) ON DELETE CASCADE;
ALTER TABLE ONLY public.job_texts
    ADD CONSTRAINT fk_job_texts_job FOREIGN KEY (job) REFERENCES public.jobs(sequence) ON DELETE CASCADE;
ALTER TABLE ONLY public.run_outputs
    ADD CONSTRAINT fk_run_outputs_job FOREIGN KEY (job) REFERENCES public.jobs(sequence) ON DELETE CASCADE;
ALTER TABLE ONLY public.runs
    ADD CONSTRAINT fk_runs_job FOREIGN KEY (job) REFERENCES public.jobs(sequence) ON DELETE CASCADE;

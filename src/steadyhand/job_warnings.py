"""The codes of the warnings of a job, each with its meaning. Pure."""

from collections.abc import Mapping
from enum import StrEnum


class WarningCode(StrEnum):
    """The code of a warning in a job and in an event."""

    AGENT_LINGERED = "agent_lingered"
    AGENT_NOTICE = "agent_notice"
    API_RETRY = "api_retry"
    BACKGROUND_STOPPED = "background_stopped"
    CACHES_UNUSED = "caches_unused"
    COMPACTED = "compacted"
    COST_DIFFERS = "cost_differs"
    DIFF_DIFFERS = "diff_differs"
    DIFF_TOO_LARGE = "diff_too_large"
    EGRESS_HOST = "egress_host"
    EGRESS_REFUSALS = "egress_refusals"
    EVENTS_LEFT_OUT = "events_left_out"
    FAILED_AFTER_ANSWER = "failed_after_answer"
    FILES_TOO_LARGE = "files_too_large"
    FILES_UNENCODED = "files_unencoded"
    FOREIGN_REF = "foreign_ref"
    GATEWAY_REFUSED = "gateway_refused"
    HARVEST_FAILED = "harvest_failed"
    HARVEST_PARTIAL = "harvest_partial"
    INSTRUCTIONS_CUT = "instructions_cut"
    LFS_POINTERS = "lfs_pointers"
    MODEL_ERROR = "model_error"
    NESTED_REPOSITORY = "nested_repository"
    NOT_SHARED = "not_shared"
    NO_LIMIT = "no_limit"
    PROCESS_LIMIT = "process_limit"
    PROCESSES_STUCK = "processes_stuck"
    PUBLISH_FAILED = "publish_failed"
    PULL_FAILED = "pull_failed"
    RATE_LIMIT = "rate_limit"
    REF_IGNORED = "ref_ignored"
    REFS_STALE = "refs_stale"
    SESSION_LOST = "session_lost"
    STEER_DROPPED = "steer_dropped"
    SUBMODULES_EMPTY = "submodules_empty"
    TRANSCRIPT_CUT = "transcript_cut"
    TRANSCRIPT_LOST = "transcript_lost"
    UNPRICED_MODEL = "unpriced_model"
    WORK_LOST = "work_lost"
    WORKSPACE_NOT_WRITABLE = "workspace_not_writable"


WARNINGS: Mapping[WarningCode, str] = {
    WarningCode.AGENT_LINGERED: "The agent did not exit after its result and was stopped.",
    WarningCode.AGENT_NOTICE: "The agent's program has a remark on its settings or its model.",
    WarningCode.API_RETRY: "The agent repeats a call that the model's service did not answer.",
    WarningCode.BACKGROUND_STOPPED: "Work that the agent left in the background was stopped.",
    WarningCode.CACHES_UNUSED: "Shared caches need isolation `bwrap`; the run had none.",
    WarningCode.COMPACTED: "The conversation was too long; the agent replaced it by a summary.",
    WarningCode.COST_DIFFERS: "The agent's own cost differs from the counted cost by more than 5 %.",
    WarningCode.DIFF_DIFFERS: "The diff does not show all that the commits change; the branch was not pushed.",
    WarningCode.DIFF_TOO_LARGE: "The diff is larger than 64 MiB and was not kept.",
    WarningCode.EGRESS_HOST: "The agent reached this host for the first time in this run.",
    WarningCode.EGRESS_REFUSALS: "Too many requests were refused; later refusals are not recorded.",
    WarningCode.EVENTS_LEFT_OUT: "The run has too many events, in all or in an outage of the store; others are lost.",
    WarningCode.FAILED_AFTER_ANSWER: "The run did not end well, after its answer had been stored as a success.",
    WarningCode.FILES_TOO_LARGE: "Changed files above the size limit were left out.",
    WarningCode.FILES_UNENCODED: "Files that git cannot encode were kept byte by byte.",
    WarningCode.FOREIGN_REF: "The ref is code of a stranger: secrets, caches, publishing or full trust are withheld.",
    WarningCode.GATEWAY_REFUSED: "The agent asked the gateway for something that is not a model call.",
    WarningCode.HARVEST_FAILED: "The agent's changes could not be kept.",
    WarningCode.HARVEST_PARTIAL: "A part of the agent's changes could not be kept.",
    WarningCode.INSTRUCTIONS_CUT: "Instruction files were left out: too large, too many or not text.",
    WarningCode.LFS_POINTERS: "Files of Git LFS are pointers in the checkout, without their content.",
    WarningCode.MODEL_ERROR: "The agent reports an error of the model's service.",
    WarningCode.NESTED_REPOSITORY: "The history of repositories inside the checkout was left out, not their files.",
    WarningCode.NOT_SHARED: "A file of the job is too large for the other nodes; only its own node has it.",
    WarningCode.NO_LIMIT: "The job asked for the nearest limit, and none is set: it has the largest value.",
    WarningCode.PROCESS_LIMIT: "The agent started more processes than it may have; the excess was refused.",
    WarningCode.PROCESSES_STUCK: "A process of the agent could not be killed.",
    WarningCode.PUBLISH_FAILED: "The branch could not be pushed; the commits are in the bundle.",
    WarningCode.PULL_FAILED: "`git pull` failed; the workspace was used as it was.",
    WarningCode.RATE_LIMIT: "The model's service reports on its rate limit.",
    WarningCode.REF_IGNORED: "A workspace in place ignores `ref`.",
    WarningCode.REFS_STALE: "The repository could not be fetched; branches and tags may be old.",
    WarningCode.SESSION_LOST: "The earlier session no longer existed; the agent began a new one.",
    WarningCode.STEER_DROPPED: "The run ended before the agent went on with a message to the running turn.",
    WarningCode.SUBMODULES_EMPTY: "Submodules are empty folders in the checkout.",
    WarningCode.TRANSCRIPT_CUT: "The transcript was cut at 64 MiB.",
    WarningCode.TRANSCRIPT_LOST: "The transcript could not be kept.",
    WarningCode.UNPRICED_MODEL: "The model has no known price; its calls count at the highest known price.",
    WarningCode.WORK_LOST: "The work of the earlier run could not be restored.",
    WarningCode.WORKSPACE_NOT_WRITABLE: "The agent's user cannot write in the workspace.",
}
"""The meaning of each code; docs/http-api.md prints this table."""

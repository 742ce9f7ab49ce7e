"""The shapes of the real command line's output, recorded from version 2.1.332."""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VERSION = "2.1.332"
MODEL = "claude-opus-5-5"
MODELS = {
    "default": MODEL,
    "opus": MODEL,
    "sonnet": "claude-sonnet-5-5",
    "haiku": "claude-haiku-5-5",
}
TOOLS = ["Task", "Bash", "Edit", "Read", "Skill", "ToolSearch", "WebFetch", "WebSearch", "Write"]


def new_uuid() -> str:
    """Return a random UUID (version 4); the uuid module takes longer to import than all else here."""
    raw = bytearray(os.urandom(16))
    raw[6] = raw[6] & 0x0F | 0x40
    raw[8] = raw[8] & 0x3F | 0x80
    text = raw.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def new_id(prefix: str) -> str:
    """Return an id in the API's form: a prefix and 24 hex digits."""
    return prefix + os.urandom(12).hex()


def now() -> str:
    """Return the time in UTC with milliseconds, as the real one writes it."""
    seconds = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds * 1000) % 1000:03d}Z"


def usage(figures: dict[str, int]) -> dict[str, Any]:
    """Return the usage of a result from its four token counts."""
    return {
        "input_tokens": figures["input_tokens"],
        "cache_creation_input_tokens": figures["cache_creation_input_tokens"],
        "cache_read_input_tokens": figures["cache_read_input_tokens"],
        "output_tokens": figures["output_tokens"],
        "output_tokens_details": {"thinking_tokens": 0},
        "server_tool_use": {"web_search_requests": 0, "web_fetch_requests": 0},
        "service_tier": "standard",
        "cache_creation": {"ephemeral_1h_input_tokens": 0, "ephemeral_5m_input_tokens": 0},
        "inference_geo": "",
        "iterations": [],
        "speed": "standard",
        "fallback_credit": None,
    }


def model_usage(model: str, figures: dict[str, int], cost: float) -> dict[str, Any]:
    """Return ``modelUsage``: totals of the process by model."""
    return {
        model: {
            "inputTokens": figures["input_tokens"],
            "outputTokens": figures["output_tokens"],
            "cacheReadInputTokens": figures["cache_read_input_tokens"],
            "cacheCreationInputTokens": figures["cache_creation_input_tokens"],
            "webSearchRequests": 0,
            "costUSD": cost,
            "contextWindow": 1000000,
            "maxOutputTokens": 128000,
            "thinkingTokens": 0,
            "cacheCreationEphemeral5mInputTokens": 0,
            "cacheCreationEphemeral1hInputTokens": 0,
            "canonicalModel": model,
            "provider": "firstParty",
            "costBasis": "list",
        }
    }


def result(session: str, seconds: float, cost: float) -> dict[str, Any]:
    """Return the result's keys that never change; the caller adds those of its outcome."""
    stats = {"parent": 0, "user": 0, "system": 0}
    return {
        "duration_api_ms": int(seconds * 1000),
        "stop_reason": "end_turn",
        "session_id": session,
        "total_cost_usd": cost,
        "usage": {},
        "modelUsage": {},
        "permission_denials": [],
        "terminal_reason": "completed",
        "fast_mode_state": "off",
        "fast_mode_disabled_reason": "sdk_opt_in_required",
        "subagent_stats": {
            "spawned": 0,
            "requested": {"background": 0, "foreground": 0, "unset": 0},
            "started_in_background": 0,
            "max_depth": 0,
            "spawned_by_subagents": 0,
            "completed": 0,
            "failed": 0,
            "killed": stats,
            "refused": {"depth_limit": 0, "concurrency_limit": 0, "budget": 0},
            "by_type": {},
        },
        "safety_stops": 0,
        "is_error": False,
        "num_turns": 1,
        "subtype": "success",
        "type": "result",
        "duration_ms": int(seconds * 1000),
        "uuid": new_uuid(),
        "queued_turn_count": 0,
        "result_index": 0,
    }


def timings() -> dict[str, int]:
    """Return the keys that a result has if the model has answered."""
    return {"ttft_ms": 1, "ttft_stream_ms": 1, "time_to_request_ms": 1, "first_content_frame_ms": 1}


def init(session: str, model: str, agents: list[str], tools: list[str]) -> dict[str, Any]:
    """Return ``system/init``, the first line of each turn."""
    cwd = os.getcwd()
    return {
        "type": "system",
        "subtype": "init",
        "cwd": cwd,
        "session_id": session,
        "tools": tools,
        "mcp_servers": [],
        "model": model,
        "permissionMode": "bypassPermissions",
        "slash_commands": ["clear", "compact", "context"],
        "terminal_slash_commands": ["doctor"],
        "apiKeySource": "ANTHROPIC_API_KEY",
        "claude_code_version": VERSION,
        "output_style": "default",
        "agents": agents,
        "skills": [],
        "plugins": [],
        "capabilities": ["interrupt_receipt_v1"],
        "analytics_disabled": True,
        "product_feedback_disabled": True,
        "served_by_anthropic": False,
        "uuid": new_uuid(),
        "sandbox_enabled": False,
        "memory_paths": {},
        "original_cwd": cwd,
        "additional_directories": [],
        "messaging_socket_path": "",
        "fast_mode_state": "off",
        "fast_mode_disabled_reason": "sdk_opt_in_required",
        "per_turn_effort_active": True,
        "ultrathink_available": False,
        "ultrathink_typed_raises": False,
        "view_mode": "default",
    }


def initialized(agents: list[dict[str, str]]) -> dict[str, Any]:
    """Return the answer to ``initialize``."""
    command = {"name": "clear", "description": "Start afresh", "argumentHint": "", "builtin": True}
    return {
        "commands": [command],
        "agents": agents,
        "output_style": "default",
        "available_output_styles": ["default"],
        "user_output_styles_dir": "",
        "models": [
            {"value": value, "resolvedModel": name, "displayName": value, "description": name}
            for value, name in MODELS.items()
        ],
        "account": {"tokenSource": "none", "apiKeySource": "ANTHROPIC_API_KEY", "apiProvider": "firstParty"},
        "pid": os.getpid(),
        "claude_code_version": VERSION,
        "current_permission_mode": "bypassPermissions",
        "hook_on_failure_supported": True,
        "hooks_when_unanswered_kept": 0,
        "other_hook_ask_outranks_host": True,
        "feedback_mode": {"kind": "disabled"},
        "analytics_disabled": True,
        "sandbox_enabled": False,
        "remote_control_auto_enable": False,
        "remote_control_auto_connect_default": False,
        "remote_control_available": False,
        "remote_control_auto_on_by_default": False,
        "ide_rc_auto_enable_gate": False,
        "fast_mode_state": "off",
        "fast_mode_disabled_reason": "sdk_opt_in_required",
        "session_state": "idle",
        "capabilities": ["ui_surface_v1"],
    }


def session_state(session: str, state: str) -> dict[str, Any]:
    """Return the message that tells that the session is ``running`` or ``idle``."""
    return {
        "type": "system",
        "subtype": "session_state_changed",
        "state": state,
        "sdk_host_only": True,
        "uuid": new_uuid(),
        "session_id": session,
    }


def session_cost(cost: float, figures: dict[str, int]) -> dict[str, Any]:
    """Return the answer to ``get_session_cost``."""
    counts = [figures.get(name, 0) for name in ("input_tokens", "output_tokens")]
    counts += [figures.get(f"cache_{name}_input_tokens", 0) for name in ("read", "creation")]
    usage = "{} input, {} output, {} cache read, {} cache write".format(*counts)
    lines = [
        f"Estimated cost:        ${cost:.4f}",
        "Total duration (API):  0s",
        "Total duration (wall): 0s",
        "Total code changes:    0 lines added, 0 lines removed",
        f"Usage:                 {usage}",
    ]
    return {"text": "\n".join(lines)}


def rewound(message_id: str, text: str, before: str | None) -> dict[str, Any]:
    """Return the answer to ``rewind_conversation``: the message that was taken back, and the one before it."""
    return {
        "rewound": True,
        "targetMessageUuid": message_id,
        "prefillText": text,
        "precedingAssistantUuid": before,
    }


def not_rewound(reason: str) -> dict[str, Any]:
    """Return the answer to ``rewind_conversation`` if nothing is taken back."""
    return {
        "rewound": False,
        "prefillText": None,
        "precedingAssistantUuid": None,
        "error": reason.replace("_", " "),
        "reason": reason,
    }


def conversation_reset(session: str, message_id: str) -> dict[str, Any]:
    """Return the message that tells that ``/clear`` has ended the conversation."""
    ident = new_uuid()
    return {
        "type": "conversation_reset",
        "new_conversation_id": ident,
        "uuid": ident,
        "trigger": "clear",
        "user_message_uuid": message_id,
        "timestamp": now(),
        "session_id": session,
    }


def background_tasks(session: str) -> dict[str, Any]:
    """Return the message that tells that nothing runs in the background."""
    kind = {"type": "system", "subtype": "background_tasks_changed"}
    return {**kind, "tasks": [], "uuid": new_uuid(), "session_id": session}


def message(ident: str, model: str, figures: dict[str, int], content: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the API's message inside an assistant line; its output tokens are those at the start, as in the CLI."""
    return {
        "id": ident,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {**figures, "output_tokens": 1},
    }

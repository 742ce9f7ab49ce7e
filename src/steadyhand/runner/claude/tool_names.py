"""The names of tools: in the CLI's messages, and those that an agent's list of tools may name."""

from steadyhand.ports import ToolNames

MCP_SERVER_NAME = "client"
"""The name of the MCP server that offers the client's tools to an agent."""
TOOL_NAMES = ToolNames(
    client_prefix=f"mcp__{MCP_SERVER_NAME}__",
    structured_output="StructuredOutput",
    todo_list="TodoWrite",
    create_todo="TaskCreate",
    update_todo="TaskUpdate",
)
BUILT_IN_TOOLS = frozenset(
    {
        "Agent",
        "Bash",
        "CronCreate",
        "CronDelete",
        "CronList",
        "Edit",
        "EnterWorktree",
        "ExitWorktree",
        "Glob",
        "Grep",
        "KillBash",
        "KillShell",
        "ListAgents",
        "Monitor",
        "NotebookEdit",
        "Read",
        "ReportFindings",
        "ScheduleWakeup",
        "SendMessage",
        "Skill",
        "Task",
        "TaskCreate",
        "TaskGet",
        "TaskList",
        "TaskStop",
        "TaskUpdate",
        "ToolSearch",
        "WebFetch",
        "WebSearch",
        "Workflow",
        "Write",
    }
)
"""The names that `--tools` of the CLI knows. It passes over any other name without a word."""
TOOL_ALIASES = {"Agent": "Task", "KillBash": "TaskStop", "KillShell": "TaskStop"}
"""Names that the CLI takes for another."""
ALL_TOOLS = "default"
"""The word of `--tools` for all tools."""

"""The names of tools in the CLI's messages."""

from steadyhand.ports import ToolNames

MCP_SERVER_NAME = "client"
"""The name of the MCP server that offers the client's tools to an agent."""
TOOL_NAMES = ToolNames(client_prefix=f"mcp__{MCP_SERVER_NAME}__", structured_output="StructuredOutput")

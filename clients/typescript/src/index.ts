export { Steadyhand, SteadyhandError, type Options, type Tool, type ToolCall } from "./steadyhand.js";
export * from "./generated/index.js";

"""An agent that asks its caller for calls."""

import asyncio
from collections.abc import Sequence

from steadyhand.events import Message, ToolFinished, ToolStarted, UsageReported
from steadyhand.job import output_text
from steadyhand.ports import ClientToolCall, Emit, RunSpec


class ToolCallingAgent:
    """An agent that asks for calls, turn by turn, and says what came of them."""

    def __init__(self, *turns: Sequence[str]) -> None:
        self.turns = turns
        self.results: list[list[str]] = []
        self.hold_after_turns = False

    async def __call__(self, spec: RunSpec, emit: Emit) -> None:
        assert spec.call_client_tools is not None
        count = 0
        for number, cities in enumerate(self.turns, 1):
            await emit(Message("assistant", f"let me look {number}"))
            await emit(UsageReported(10 * number, 5 * number, 0, 0, number))
            calls = []
            for city in cities:
                count += 1
                await emit(ToolStarted(f"toolu_{count}", "mcp__client__get_weather", {"city": city}))
                name = f"call_{spec.job.id}_{spec.number}_{count}"
                calls.append(ClientToolCall(name, "get_weather", {"city": city}))
            found = await spec.call_client_tools(calls)
            for call in calls:
                place = call.id.rpartition("_")[2]
                await emit(ToolFinished(f"toolu_{place}", False, output_text(found[call.id]), False, 1))
            self.results.append([output_text(found[call.id]) for call in calls])
        if self.hold_after_turns:
            await asyncio.Event().wait()
        await emit(Message("assistant", "it is fine"))

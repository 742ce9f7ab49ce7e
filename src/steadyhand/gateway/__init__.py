"""The one door between agents and models: it holds the key, counts every call, and ends at the budget.

From a sealed run there is also a proxy to the hosts on its agent's list, and nothing else.
"""

from steadyhand.gateway.door import Accounts, ModelGateway, budget_of
from steadyhand.gateway.egress import Patience, Resolve
from steadyhand.gateway.prices import Prices
from steadyhand.gateway.providers import Credential, Provider
from steadyhand.gateway.rules import Rules
from steadyhand.gateway.sockets import SOCKET_NAME, slot_folder
from steadyhand.gateway.walls import Waits

__all__ = [
    "SOCKET_NAME",
    "Accounts",
    "Credential",
    "ModelGateway",
    "Patience",
    "Prices",
    "Provider",
    "Resolve",
    "Rules",
    "Waits",
    "budget_of",
    "slot_folder",
]

"""The one door between agents and models: it holds the key, counts every call, and ends at the budget.

From a sealed run there is also a proxy to the hosts on its agent's list, and nothing else.
"""

from steadyhand.gateway.egress.connect_proxy import Patience, Resolve
from steadyhand.gateway.egress.rules import Rules
from steadyhand.gateway.gateway import Accounts, ModelGateway, budget_of
from steadyhand.gateway.model.provider_rate_limits import Waits
from steadyhand.gateway.model.providers import Credential, Provider
from steadyhand.gateway.model.unix_listener import SOCKET_NAME, slot_folder
from steadyhand.gateway.money.prices import Prices

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

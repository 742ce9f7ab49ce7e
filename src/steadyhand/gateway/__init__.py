"""The gateway between agents and models: it holds the credentials, counts every call and enforces the budgets.

For sandboxed runs it also has a proxy to the hosts on the agent's list, and to no other.
"""

from steadyhand.gateway.egress.connect_proxy import ProxyTimeouts, Resolve
from steadyhand.gateway.egress.rules import EgressRules
from steadyhand.gateway.gateway import BillingDeps, ModelGateway
from steadyhand.gateway.model.provider_rate_limits import RetryLimits
from steadyhand.gateway.model.providers import Credential, Provider
from steadyhand.gateway.model.unix_listener import SOCKET_NAME, slot_dir
from steadyhand.gateway.money.limits import (
    GetKeyLimits,
    create_limits_getter,
    create_shared_limits_getter,
    job_limits,
)
from steadyhand.gateway.money.prices import Prices

__all__ = [
    "SOCKET_NAME",
    "BillingDeps",
    "Credential",
    "EgressRules",
    "GetKeyLimits",
    "ModelGateway",
    "Prices",
    "Provider",
    "ProxyTimeouts",
    "Resolve",
    "RetryLimits",
    "create_limits_getter",
    "create_shared_limits_getter",
    "job_limits",
    "slot_dir",
]

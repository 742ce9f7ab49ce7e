"""The only door out of a sealed run: a socket to the model that adds the real key, and a proxy to listed hosts."""

from steadyhand.gateway.door import ModelGateway
from steadyhand.gateway.egress import Patience, Resolve
from steadyhand.gateway.forward import Credential
from steadyhand.gateway.rules import Rules
from steadyhand.gateway.sockets import SOCKET_NAME, slot_folder

__all__ = ["SOCKET_NAME", "Credential", "ModelGateway", "Patience", "Resolve", "Rules", "slot_folder"]

"""The calls of a model on loopback, which go to no proxy."""

from collections.abc import Mapping

from steadyhand.ports import ModelAccess

_PROXIES = frozenset({"http_proxy", "https_proxy", "all_proxy"})
_LOOPBACK = "127.0.0.1"


def direct_environment(env: Mapping[str, str], access: ModelAccess) -> dict[str, str]:
    """Return the variables by which an agent asks a model on loopback directly, if `env` names a proxy.

    The agent would send these calls and their credential to the proxy, which means another machine by the address.
    """
    if access.socket is not None or not (access.base_url or "").startswith(f"http://{_LOOPBACK}:"):
        return {}
    if not any(name.lower() in _PROXIES and value for name, value in env.items()):
        return {}
    listed = [env[name] for name in ("NO_PROXY", "no_proxy") if env.get(name)]
    exceptions = ",".join(dict.fromkeys((*listed, _LOOPBACK)))
    return {"NO_PROXY": exceptions, "no_proxy": exceptions}

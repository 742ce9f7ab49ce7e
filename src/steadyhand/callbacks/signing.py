"""Signatures of Standard Webhooks, and the secrets that make them."""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from steadyhand.errors import ConfigError

_PREFIX = "whsec_"
_MIN_BYTES, _MAX_BYTES = 24, 64


def sign(secrets: Sequence[str], message_id: str, at: datetime, body: str) -> Mapping[str, str]:
    """Return the headers that sign a body, with one signature for each secret."""
    from standardwebhooks.webhooks import Webhook  # noqa: PLC0415  # a service without callbacks needs none

    at = at.astimezone(UTC)  # the package takes the clock of any other zone as that of UTC
    signatures = [Webhook(secret).sign(message_id, at, body) for secret in secrets]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": " ".join(signatures),
    }


def derive_secret(service_secret: bytes, api_key_id: str) -> str:
    """Return the secret that signs the callbacks of the jobs of one key.

    Each key has another one, so a receiver of one key cannot sign for another.
    """
    return (
        _PREFIX + base64.b64encode(hmac.digest(service_secret, api_key_id.encode(), hashlib.sha256)).decode()
    )


def parse_secrets(text: str, setting: str) -> tuple[str, ...]:
    """Return the secrets of a file, one a line. Raise `ConfigError` without any, or for one that is none."""
    secrets = tuple(line.strip() for line in text.split("\n") if line.strip())
    if not secrets:
        raise ConfigError(f"{setting}: the file has no secret.")
    for secret in secrets:
        try:
            size = len(base64.b64decode(secret.removeprefix(_PREFIX), validate=True))
        except (ValueError, binascii.Error):
            size = 0
        if not secret.startswith(_PREFIX) or not _MIN_BYTES <= size <= _MAX_BYTES:
            raise ConfigError(
                f"{setting}: a secret is {_PREFIX} and {_MIN_BYTES} to {_MAX_BYTES} bytes in base64."
            )
    return secrets

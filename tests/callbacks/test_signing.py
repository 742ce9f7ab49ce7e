"""Signatures that the standard package accepts, and the secrets that make them."""

from datetime import datetime, timedelta, timezone

import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from steadyhand.callbacks.signing import derive_secret, parse_secrets, sign
from steadyhand.clock import utc_now
from steadyhand.errors import ConfigError

ONE, TWO = derive_secret(b"the service", "k_one"), derive_secret(b"the service", "k_two")
BODY = '{"type":"job.ended"}'


@pytest.mark.parametrize("zone", [timezone.utc, timezone(timedelta(hours=9)), timezone(timedelta(hours=-7))])  # noqa: UP017  # as the others
def test_the_standard_package_accepts_a_signature_at_a_time_in_any_zone(zone: timezone) -> None:
    headers = sign([ONE], "msg_1", datetime.now(zone), BODY)
    assert Webhook(ONE).verify(BODY, dict(headers)) == {"type": "job.ended"}


def test_another_body_another_id_and_the_secret_of_another_key_are_not_accepted() -> None:
    headers = dict(sign([ONE], "msg_1", utc_now(), BODY))
    for secret, body, changed in (
        (TWO, BODY, headers),
        (ONE, BODY + " ", headers),
        (ONE, BODY, {**headers, "webhook-id": "msg_2"}),
    ):
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(body, changed)


def test_each_of_several_secrets_signs_so_that_one_can_be_replaced() -> None:
    headers = dict(sign([ONE, TWO], "msg_1", utc_now(), BODY))
    for secret in (ONE, TWO):
        assert Webhook(secret).verify(BODY, headers) == {"type": "job.ended"}


def test_a_file_has_one_secret_a_line() -> None:
    assert parse_secrets(f"\n{ONE}\n  {TWO}\n", "x") == (ONE, TWO)


@pytest.mark.parametrize(
    "text", ["", "\n", "secret", "whsec_", "whsec_c2hvcnQ=", "whsec_!!!", ONE.removeprefix("whsec_")]
)
def test_a_text_that_is_no_secret_is_a_wrong_setting_and_is_not_shown(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_secrets(text, "callbacks.endpoints.one.secret_file")
    assert not text.strip() or len(text) < 8 or text.strip() not in error.value.detail

"""Requests to COS are signed by the given clock, and not by that of the machine."""

from __future__ import annotations

import time

import pytest
import qcloud_cos
import requests
from qcloud_cos import cos_auth

from tencent import cos_requests


@pytest.mark.parametrize("ahead_s", [-3_600, 0, 3_600, 86_400])
def test_the_clock_of_the_signature(ahead_s: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The span of validity begins a minute before that clock's time."""
    monkeypatch.setattr(cos_auth, "time", cos_auth.time)
    now_s = int(time.time()) + ahead_s
    cos_requests.sign_by(lambda: now_s * 1000 + 7)
    config = qcloud_cos.CosConfig(Region="ap-guangzhou", SecretId="AKIDx", SecretKey="y")
    request = requests.Request("PUT", "http://127.0.0.1/a", auth=qcloud_cos.CosS3Auth(config, "a")).prepare()
    fields = dict(field.split("=", 1) for field in request.headers["Authorization"].split("&"))
    assert fields["q-sign-time"].split(";")[0] == str(now_s - 60)

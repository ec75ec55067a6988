"""Checks of `recorder doctor` about the outside: TRTC's callbacks, the receivers' secret, COS, the server of the streams."""

from __future__ import annotations

from cli import doctor_probes
from cli.doctor_case import SETTINGS_PAGE, Case, Finding, fail, ok, warn
from machine import errors

# Answers for every region; a bucket's own host is known only at a start.
COS_HOST = "service.cos.myqcloud.com"


def check_callback_keys(case: Case) -> Finding:
    """TRTC callbacks can be verified."""
    keys = case.settings.trtc_callback_keys
    if keys:
        return ok("applications " + ", ".join(str(app) for app in keys))
    meaning = "Every TRTC callback is refused: only speakers named in SubscribeUserIds are recorded."
    remedy = "export TRTC_CALLBACK_KEYS=1400000001=…  # SdkAppId=key, as set in the TRTC console under Callbacks"
    return warn("none", meaning, remedy)


def check_callback_secret(case: Case) -> Finding:
    """Receivers can verify results."""
    if case.settings.callback_secret.get_secret_value():
        return ok("set")
    meaning = "Results are posted unsigned: a receiver cannot tell them from forged ones."
    remedy = "export CALLBACK_SECRET=whsec_$(openssl rand -base64 24)  # and give it to the receivers"
    return warn("not set", meaning, remedy)


def check_credentials(case: Case) -> Finding:
    """COS credentials exist for starts that bring none."""
    from assembly import inspection

    try:
        return ok(f"from {inspection.credentials_source(case.environ)}")
    except errors.RecorderError as error:
        remedy = "export TENCENTCLOUD_SECRET_ID=… TENCENTCLOUD_SECRET_KEY=…  # or bind a role to this machine"
        return warn(str(error), "Each start must bring its own SecretId and SecretKey.", remedy)


def check_pull(case: Case) -> Finding:
    """The server of PULL_ADDRESS can be reached."""
    from assembly import inspection

    try:
        host, port = inspection.pull_endpoint(case.settings)
    except (errors.RecorderError, ValueError, KeyError) as error:
        return fail(str(error), "No stream can be pulled.", SETTINGS_PAGE)
    return _connection(case, host, port, "Streams are pulled from there: nothing is recorded while it is unreachable.")


def check_cos(case: Case) -> Finding:
    """COS can be reached."""
    _, host, port = case.settings.cos_server or ("https", COS_HOST, 443)
    return _connection(case, host, port, "Files are uploaded there: uploads are retried while it is unreachable.")


def _connection(case: Case, host: str, port: int, meaning: str) -> Finding:
    fault = doctor_probes.connect_fault(host, port, case.left_s)
    if fault:
        remedy = f"nc -vz {host} {port}  # from this machine; check DNS, firewall and security group"
        return warn(f"{host}:{port}: {fault}", meaning, remedy)
    return ok(f"{host}:{port} answers")

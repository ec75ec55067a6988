"""Alerts under promtool: the rules and the panels are valid, each alert fires when it should, and none in a healthy system."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests import scrapes
from tests.unit import test_metric_names

RULES = Path(__file__).parents[2] / "deploy" / "alerts.yml"
MINUTES = 90
ME = 'job="recorder", instance="a"'


def age_buckets(slow: int, fast: int) -> dict[str, str]:
    """A histogram in which so many events a minute are late, and so many are not."""
    name = "recorder_event_age_seconds_bucket"
    growth = {"1.0": fast, "30.0": fast + slow, "+Inf": fast + slow}
    return {f'{name}{{type="ffmpeg-exit", le="{le}"}}': f"0+{number}x{MINUTES}" for le, number in growth.items()}


def steady(**numbers: float) -> dict[str, str]:
    """Gauges that stay as they are."""
    return {name: f"{number}x{MINUTES}" for name, number in numbers.items()}


# A system as it should be.
HEALTHY = {
    f"up{{{ME}}}": f"1x{MINUTES}",
    f"process_start_time_seconds{{{ME}}}": f"1x{MINUTES}",
    f"recorder_ready{{{ME}}}": f"1x{MINUTES}",
    'recorder_attention{cause="no-worker"}': f"0x{MINUTES}",
    'recorder_attention{cause="parked"}': f"0x{MINUTES}",
    f"recorder_spool_free_bytes{{{ME}}}": f"100000x{MINUTES}",
    f"recorder_spool_needed_bytes{{{ME}}}": f"1000x{MINUTES}",
    'recorder_outbox_oldest_seconds{channel="event"}': f"0.1x{MINUTES}",
    # A job waits in the outbox while no slot is free for it.
    'recorder_outbox_oldest_seconds{channel="command"}': f"500x{MINUTES}",
    'recorder_jobs_queued_oldest_seconds{kind="capture"}': f"1x{MINUTES}",
    'recorder_jobs_queued_oldest_seconds{kind="upload"}': f"60x{MINUTES}",
    'recorder_recordings_ended_total{code="Success"}': f"0+10x{MINUTES}",
    'recorder_recordings_ended_total{code="FailedRecording"}': f"0x{MINUTES}",
    'recorder_recordings_ended_total{code="Partial"}': f"0x{MINUTES}",
    'recorder_recordings{state="Uploading"}': f"3x{MINUTES}",
    'recorder_deliveries_ended_total{outcome="failed"}': f"0x{MINUTES}",
    'recorder_http_requests_total{status="200", route="/sessions"}': f"0+100x{MINUTES}",
    'recorder_http_requests_total{status="503", route="/sessions"}': f"0x{MINUTES}",
    **steady(recorder_can_accept=1, recorder_figures_age_seconds=4),
    "recorder_upload_bytes_total": f"0+1000x{MINUTES}",
    **age_buckets(0, 100),
}
# Alert → what differs from a healthy system.
FIRING: dict[str, dict[str, str]] = {
    "RecorderDown": {f"up{{{ME}}}": f"0x{MINUTES}"},
    "RecorderRestarts": {f"process_start_time_seconds{{{ME}}}": f"1+60x{MINUTES}"},
    "RecorderNotReady": {f"recorder_ready{{{ME}}}": f"0x{MINUTES}"},
    "RecorderNeedsAttention": {'recorder_attention{cause="no-worker"}': f"1x{MINUTES}"},
    "RecorderNeedsAttentionSoon": {'recorder_attention{cause="parked"}': f"7x{MINUTES}"},
    "RecorderCannotAccept": steady(recorder_can_accept=0),
    "RecorderSpoolFills": {f"recorder_spool_free_bytes{{{ME}}}": f"100000-500x{MINUTES}"},
    "RecorderDatabaseUnseen": {"recorder_figures_age_seconds": f"0+60x{MINUTES}"},
    "RecorderEventsLate": age_buckets(50, 100),
    "RecorderOutboxLate": {'recorder_outbox_oldest_seconds{channel="event"}': f"90x{MINUTES}"},
    "RecorderCapturesWait": {'recorder_jobs_queued_oldest_seconds{kind="capture"}': f"20x{MINUTES}"},
    "RecorderJobsWait": {'recorder_jobs_queued_oldest_seconds{kind="upload"}': f"1000x{MINUTES}"},
    "RecorderRecordingsFail": {'recorder_recordings_ended_total{code="FailedRecording"}': f"0+1x{MINUTES}"},
    "RecorderFilesLackMedia": {'recorder_recordings_ended_total{code="Partial"}': f"0+1x{MINUTES}"},
    "RecorderUploadsStand": {"recorder_upload_bytes_total": f"1000x{MINUTES}"},
    "RecorderResultsUndelivered": {'recorder_deliveries_ended_total{outcome="failed"}': f"0x{MINUTES - 10} 1x10"},
    "RecorderRequestsFail": {'recorder_http_requests_total{status="503", route="/sessions"}': f"0+10x{MINUTES}"},
}


def test_every_alert_has_a_case() -> None:
    """Each alert of the file is made to fire here."""
    assert {rule["alert"] for rule in test_metric_names.rules()} == FIRING.keys()


def case(name: str, series: dict[str, str], firing: list[str]) -> dict[str, Any]:
    """A test of promtool: at the end exactly these alerts fire."""
    samples = [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in firing]
    asked = {"expr": 'count by (alertname) (ALERTS{alertstate="firing"})', "eval_time": f"{MINUTES}m", "exp_samples": samples}
    written = [{"series": each, "values": values} for each, values in series.items()]
    return {"name": name, "interval": "1m", "input_series": written, "promql_expr_test": [asked]}


async def test_each_alert_fires_alone(tmp_path: Path) -> None:
    """promtool accepts the rules; each fault fires its own alert and no other, and a healthy system fires none."""
    assert (await scrapes.promtool("check", "rules", str(RULES)))[0] == 0
    cases = [case("healthy", HEALTHY, []), *(case(alert, HEALTHY | series, [alert]) for alert, series in FIRING.items())]
    file = tmp_path / "cases.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": cases}), encoding="utf-8")
    code, printed = await scrapes.promtool("test", "rules", str(file))
    assert code == 0, printed


async def test_every_panel_is_valid(tmp_path: Path) -> None:
    """Prometheus can parse the expression of each panel."""
    expressions = [e.replace("$__rate_interval", "5m") for _, e in test_metric_names.expressions()]
    rules = [{"record": f"panel:number{number}", "expr": expression} for number, expression in enumerate(expressions)]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}), encoding="utf-8")
    code, printed = await scrapes.promtool("check", "rules", "--lint=none", str(file))
    assert code == 0, printed

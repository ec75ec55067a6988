"""Settings: accepted and refused values, faults, defaults, and hidden secrets."""

from __future__ import annotations

from pathlib import Path

import pytest

from assembly import database
from config import settings, settings_table
from tests import engines

HOME = {"HOME": "/home/op"}


def faults(**environ: str) -> dict[str, str]:
    """The faults of these variables, by variable."""
    with pytest.raises(settings.SettingsError) as caught:
        settings.load({**HOME, **environ})
    return dict(fault.split(": ", 1) for fault in caught.value.faults)


def test_nothing_is_required_on_loopback() -> None:
    """An environment with only HOME gives the defaults of the design."""
    found = settings.load(HOME)
    assert (found.host, found.port, found.api_tokens) == ("127.0.0.1", 8080, ())
    assert found.database == "sqlite+aiosqlite:////home/op/.local/share/recorder/recorder.db"
    assert (found.linger_s, found.idle_timeout_s, found.join_timeout_s, found.max_duration_s) == (30, 300, 300, 86_400)
    assert (found.result_wait_s, found.upload_retry_for_s, found.keep_failed_s, found.lease_s) == (900, 259_200, 604_800, 30)
    assert (found.min_free_bytes, found.pull_user, found.cos_server) == (2 * 2**30, "shared", None)
    assert found.spool.name.startswith("recorder-")


def test_receivers_of_callbacks() -> None:
    """A receiver needs the callback key of its application: without one, none of its callbacks is genuine."""
    forward = "1400000001=https://x.example/trtc?a=b"
    found = settings.load({**HOME, "TRTC_CALLBACK_KEYS": "1400000001=k", "TRTC_CALLBACK_FORWARD": forward})
    assert found.trtc_callback_forward[1400000001].get_secret_value() == "https://x.example/trtc?a=b"
    assert "TRTC_CALLBACK_KEYS" in faults(TRTC_CALLBACK_FORWARD=forward)["TRTC_CALLBACK_FORWARD"]


def test_events_of_progress() -> None:
    """None is published by default; a name that is none is refused with those that are."""
    assert settings.load(HOME).progress_events == ()
    assert settings.load({**HOME, "PROGRESS_EVENTS": "recording-started, recording-progress"}).progress_events == (
        "recording-started",
        "recording-progress",
    )
    assert "recording-resumed" in faults(PROGRESS_EVENTS="recording-ended")["PROGRESS_EVENTS"]


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), ("72h", 259_200), ("7d", 604_800), ("500ms", 0.5), (" 3 s ", 3)]
)
def test_durations(text: str, seconds: float) -> None:
    """A duration is a number with a unit; without one it is in seconds."""
    assert settings.load({**HOME, "LINGER": text}).linger_s == seconds


@pytest.mark.parametrize("text", ["-1", "1w", "s", "1e3", "1 000", "∞", "٣", "nan", "30s 5"])
def test_invalid_durations(text: str) -> None:
    """The fault shows valid durations."""
    assert "30s, 15m, 72h or 7d" in faults(LINGER=text)["LINGER"]


@pytest.mark.parametrize(("text", "size"), [("1048576", 2**20), ("512MiB", 2**29), ("2GiB", 2**31), ("2GB", 2 * 10**9), ("0", 0)])
def test_sizes(text: str, size: int) -> None:
    """A size is in bytes, or has a unit."""
    assert settings.load({**HOME, "MIN_FREE": text}).min_free_bytes == size


@pytest.mark.parametrize("text", ["1400000001=one,1400000002=t=wo", '{"1400000001": "one", "1400000002": "t=wo"}'])
def test_keys_by_application(text: str) -> None:
    """Keys are pairs or JSON; a key may contain an equals sign."""
    keys = settings.load({**HOME, "TRTC_KEYS": text}).trtc_keys
    assert {app: key.get_secret_value() for app, key in keys.items()} == {1400000001: "one", 1400000002: "t=wo"}


@pytest.mark.parametrize("text", ["1400000001", "x=key", "0=key", "4294967296=key", "[1]", '{"1": 2}', "1=", "{"])
def test_invalid_keys(text: str) -> None:
    """A key without an application, or an application without a key, is refused."""
    assert "SdkAppId=key" in faults(TRTC_CALLBACK_KEYS=text)["TRTC_CALLBACK_KEYS"]


def test_lists() -> None:
    """Commas separate items; spaces and empty items are dropped."""
    found = settings.load({**HOME, "API_TOKENS": " a, b ,,", "CALLBACK_ALLOW": "10.0.0.0/8, hooks.internal,::1"})
    assert [token.get_secret_value() for token in found.api_tokens] == ["a", "b"]
    assert found.callback_allow == ("10.0.0.0/8", "hooks.internal", "::1")


def test_an_empty_variable_counts_as_unset() -> None:
    """A compose file may pass a variable on as empty."""
    assert settings.load({**HOME, "PORT": "", "LINGER": "  ", "CFS_PATH": ""}) == settings.load(HOME)


def test_all_faults_are_reported_at_once() -> None:
    """Every wrong variable is named with its allowed values, contradictions included."""
    found = faults(
        HOST="0.0.0.0",
        PORT="99999",
        LINGER="soon",
        PULL_USER="both",
        COS_ENDPOINT="cos",
        LOG_LEVEL="loud",
        PULL_ADDRESS="file:///x",
    )
    assert set(found) == {"API_TOKENS", "PORT", "LINGER", "PULL_USER", "COS_ENDPOINT", "LOG_LEVEL", "PULL_ADDRESS"}
    assert found["PORT"] == "must be a number from 0 to 65535"
    assert found["PULL_USER"] == "must be shared or per-speaker"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "localhost", "::1", "[::1]"])
def test_loopback_needs_no_token(host: str) -> None:
    """Other machines cannot reach it."""
    assert settings.load({**HOME, "HOST": host}).host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "recorder.example.com", "localhost.example.com"])
def test_any_other_host_needs_a_token(host: str) -> None:
    """Anyone who reaches the port could record, so the service does not start without a token."""
    assert "HOST" in faults(HOST=host)["API_TOKENS"]
    assert settings.load({**HOME, "HOST": host, "API_TOKENS": "t"}).host == host


def test_workers_with_separate_spools_need_an_address() -> None:
    """If HOST is every address of the machine, other nodes need NODE_URL."""
    many = {"AMQP_URL": "amqp://h/", "DATABASE_URL": "postgresql+asyncpg://u@h/x", "SECRET_KEYS": engines.SECRET_KEYS}
    many |= {"CLUSTER_TOKEN": "t", "API_TOKENS": "t", "HOST": "0.0.0.0"}
    assert "HOST" in faults(**many)["NODE_URL"]
    for more in ({"NODE_URL": "http://10.0.0.7:8080"}, {"HOST": "10.0.0.7"}, {"ROLES": "api,machine"}):
        assert settings.load({**HOME, **many, **more}).cluster_token
    assert settings.load({**HOME, **many, "SPOOL_SHARED": "true", "CFS_PATH": "/cfs"}).spool_shared


@pytest.mark.parametrize(
    ("roles", "most_nodes"), [("api,machine,worker", 16), ("api,machine", 19), ("machine", 24), ("worker", 32), ("api", 32)]
)
def test_many_nodes_fit_a_default_postgresql(roles: str, most_nodes: int) -> None:
    """The pools of docs/operate.md's table fit in 97 of its 100 connections; a number that is given counts alone."""
    amqp = {"AMQP_URL": "amqp://h/", "DATABASE_URL": "postgresql+asyncpg://u@h/n", "SECRET_KEYS": engines.SECRET_KEYS}
    environ = HOME | amqp | {"ROLES": roles, "CLUSTER_TOKEN": "t"}
    assert 97 // database.pool_size(settings.load(environ)) == most_nodes
    assert database.pool_size(settings.load(environ | {"DATABASE_CONNECTIONS": "11"})) == 11
    assert f"| {most_nodes} |" in (Path(__file__).parent.parent.parent / "docs" / "operate.md").read_text("utf-8")


def test_the_database_is_never_on_cfs(tmp_path: Path) -> None:
    """Neither by DATA_DIR, nor by DATABASE_URL, nor through a link."""
    cfs = tmp_path / "cfs"
    cfs.mkdir()
    (tmp_path / "link").symlink_to(cfs)
    assert "CFS_PATH" in faults(CFS_PATH=str(cfs), DATA_DIR=str(cfs / "data"))["DATA_DIR"]
    assert "CFS_PATH" in faults(CFS_PATH=str(cfs), DATA_DIR=str(tmp_path / "link"))["DATA_DIR"]
    assert "CFS_PATH" in faults(CFS_PATH=str(cfs), DATABASE_URL=f"sqlite+aiosqlite:///{cfs}/x.db")["DATABASE_URL"]
    assert settings.load({**HOME, "CFS_PATH": str(cfs), "DATA_DIR": str(tmp_path)}).spool == cfs


@pytest.mark.parametrize("url", ["mysql://u:PLANTED@h/x", "sqlite+aiosqlite:///", "sqlite+aiosqlite:///:memory:", "x"])
def test_an_unusable_database_is_refused(url: str) -> None:
    """Another engine, or one in memory, is refused without repeating the address."""
    fault = faults(DATABASE_URL=url)["DATABASE_URL"]
    assert "sqlite:///" in fault
    assert "PLANTED" not in fault
    assert set(faults(DATABASE_URL="postgres://u:PLANTED@h/x")) == {"AMQP_URL"}


MANY = {"AMQP_URL": "amqp://h/", "DATABASE_URL": "postgresql://u@h/n", "SECRET_KEYS": engines.SECRET_KEYS, "CLUSTER_TOKEN": "t"}


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("postgres://u:p@h/n", "u:p@h/n"),
        ("postgresql+asyncpg://u:p@h/n?ssl=verify-full", "u:p@h/n?sslmode=verify-full"),
        ("postgresql://u:p@x:y@h/n", "u:p%40x:y@h/n"),
        ("postgresql://u@h/n?channel_binding=prefer&connect_timeout=10&sslmode=require", "u@h/n?sslmode=require"),
        ("postgresql://u@h/n?sslmode=verify-full&channel_binding=require", "u@h/n?sslmode=verify-full"),
        ("postgresql://u@h1:5432,h2:5433/n", "u@h1:5432,h2:5433/n?target_session_attrs=read-write"),
        ("postgresql://u@h1,h2/n?target_session_attrs=any", "u@h1,h2/n?target_session_attrs=any"),
        ("postgresql://u@[::1]:5432/n", "u@[::1]:5432/n"),
        ("postgresql://u@/n?host=/run/postgresql", "u@/n?host=%2Frun%2Fpostgresql"),
    ],
)
def test_forms_of_a_postgresql_address(given: str, used: str) -> None:
    """Each form that people paste becomes the one of the store. Of several hosts, the one that accepts writes is used."""
    found = settings.load({**HOME, **MANY, "DATABASE_URL": given})
    assert found.database == f"postgresql+asyncpg://{used}"


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("amqp://u:p@h1:5672,h2/v", "amqp://u:p@h1:5672/v,amqp://u:p@h2/v"),
        ("amqp://h1/, amqps://h2/?auth=plain,x", "amqp://h1/,amqps://h2/?auth=plain%2Cx"),
        ("amqp://u:a,b@c@h/", "amqp://u:a%2Cb%40c@h/"),
    ],
)
def test_several_hosts_of_a_broker(given: str, used: str) -> None:
    """Hosts in one address, or several addresses; a comma of a password is none between hosts."""
    assert settings.load({**HOME, **MANY, "AMQP_URL": given}).amqp_url.get_secret_value() == used


def test_the_leftovers_of_env_files() -> None:
    """A pair of quotes and a carriage return around a value are not part of it; a quote at one end is."""
    written = {"CALLBACK_SECRET": '"secret"\r', "DATA_DIR": "'/var/lib/it is'", "PORT": "8081\r", "API_TOKENS": '"'}
    found = settings.load({**HOME, **written})
    assert (found.callback_secret.get_secret_value(), found.data_dir, found.port) == ("secret", Path("/var/lib/it is"), 8081)
    assert found.api_tokens[0].get_secret_value() == '"'


def test_names_that_are_no_settings() -> None:
    """A misspelled or prefixed setting is reported with the right name; variables of other programs are not."""
    others = ("HOSTNAME", "RECORDER_URL", "RECORDER_TOKEN", "LOGNAME", "TENCENTCLOUD_SECRET_ID", "POSTGRES_PASSWORD", "PATH")
    environ = dict.fromkeys(others, "x") | {"RECORDER_PORT": "tcp://10.0.0.1:80"}
    assert settings.misspelled(environ) == ()
    wrong = {
        "MIN_FREEE": "MIN_FREE",
        "ROLE": "ROLES",
        "RECORDER_DATA_DIR": "DATA_DIR",
        "\ufeffHOST": "HOST",
        "max_cpu": "MAX_CPU",
    }
    found = settings.misspelled(environ | dict.fromkeys(wrong, "x") | {"PORT": "1"})
    assert {text.split()[0]: text.split(": ")[1].split()[0] for text in found} == wrong


def test_without_a_home_the_folder_must_be_given() -> None:
    """Without HOME, DATA_DIR is required; with it, ~ is the HOME of the mapping."""
    with pytest.raises(settings.SettingsError, match="DATA_DIR: is required"):
        settings.load({})
    assert settings.load({"DATA_DIR": "/data"}).data_dir == Path("/data")
    assert settings.load({**HOME, "DATA_DIR": "~/r"}).data_dir == Path("/home/op/r")
    assert settings.load({**HOME, "XDG_DATA_HOME": "/xdg"}).data_dir == Path("/xdg/recorder")


def test_the_environment_of_the_process_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the mapping is read."""
    monkeypatch.setenv("PORT", "1234")
    monkeypatch.setenv("port", "1234")
    assert settings.load(HOME).port == 8080


def test_no_secret_shows() -> None:
    """No secret is in the repr or in a fault."""
    secret = "PLANTED"
    environ = dict.fromkeys(("API_TOKENS", "CALLBACK_SECRET"), secret)
    environ |= {"TRTC_KEYS": f"1={secret}", "TRTC_CALLBACK_KEYS": f"2={secret}"}
    environ |= {"DATABASE_URL": f"sqlite+aiosqlite:////x/{secret}.db"}
    found = settings.load({**HOME, **environ})
    assert found.callback_secret.get_secret_value() == secret
    assert secret not in f"{found!r}{found}"
    wrong = {"TRTC_KEYS": secret, "API_TOKENS": f"{secret} x", "CALLBACK_SECRET": f"whsec_{secret}!", "PORT": secret}
    assert secret not in str(faults(**wrong))


def test_the_reference_has_every_setting() -> None:
    """The table has a row with a meaning for each variable, and no path of a machine."""
    table = settings_table.reference()
    for name in settings.variables():
        assert table.count(f"| `{name}` |") == 1
    assert str(Path.home()) not in table.replace("~/", "")
    assert all(line.count(" |") == 3 for line in table.splitlines()[2:])

"""The pages that people follow: every command of both READMEs, and of the pages that they link to, is typed here in order, on the
embedded engine, which is the one that they install.

A command that is not typed (installing packages, make) is checked by other means; a command with neither fails the test.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from config import settings
from events import codec
from machine import errors
from tests import pages
from webhook import sender as sender_module

ROOT = pages.ROOT
README = ROOT / "README.md"


def installs(words: list[str]) -> None:
    """apt-get install: each package is named by our own scripts, or is used only by the pages."""
    assert words[:2] == ["apt-get", "install"]
    scripts = "".join(path.read_text() for path in (ROOT / "deploy").glob("*.sh"))
    unknown = {package for package in words[2:] if not re.search(rf"\b{re.escape(package)}\b", scripts)}
    assert unknown <= {"curl", "openssl"}


def makes(words: list[str]) -> None:
    """make: each target is in the Makefile, with a line in `make help`."""
    targets = re.findall(r"^([a-z]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert words[0] == "make"
    assert set(words[1:]) <= set(targets)


BY_HAND = {"apt-get": installs, "make": makes}


@pytest.fixture
async def terminals(tmp_path: Path) -> AsyncIterator[pages.Terminals]:
    made = pages.Terminals(tmp_path)
    yield made
    await made.leave()


@pytest.mark.timeout(180)
async def test_the_readme_word_for_word(terminals: pages.Terminals) -> None:
    """Every command of the README works in order and prints the text on the page, and both servers end well."""
    await pages.Follower(terminals, by_hand=BY_HAND).follow(README)
    assert set((await terminals.leave()).values()) == {0}


@pytest.fixture
async def running(terminals: pages.Terminals) -> pages.Follower:
    """The precondition of the other pages: the README, followed until the service of terminal 2 runs."""
    follower = pages.Follower(terminals, by_hand=BY_HAND)
    first = pages.blocks(README)
    servers = [number for number, block in enumerate(first) if block.server == "recorder serve"]
    for block in first[: servers[0] + 1]:
        await follower.do(block)
    return follower


@pytest.mark.timeout(180)
async def test_the_page_for_publishers(running: pages.Follower) -> None:
    """The starts, repeats, refusals and stops of docs/publish.md work as the page states."""
    await running.follow(ROOT / "docs" / "publish.md")


NODE = shutil.which("node")
WITHOUT_NODE = () if NODE else ("node receiver.mjs",)


@pytest.mark.timeout(180)
async def test_the_page_for_subscribers(terminals: pages.Terminals, running: pages.Follower) -> None:
    """In docs/subscribe.md, both receivers accept genuine results only, /results misses nothing, and the example is a valid
    result."""
    page = ROOT / "docs" / "subscribe.md"
    follower = pages.Follower(terminals, skip=WITHOUT_NODE, aside=("json", "javascript"))
    await follower.follow(page)
    (example,) = [json.loads(block.text) for block in pages.blocks(page) if block.language == "json"]
    codec.check("session-finished", example)


@pytest.mark.parametrize(
    "program", ["receiver.py", pytest.param("receiver.mjs", marks=pytest.mark.skipif(not NODE, reason="no node"))]
)
async def test_a_receiver_accepts_a_genuine_result_once(tmp_path: Path, program: str) -> None:
    """A receiver accepts a result that the service's own sender signs, once per revision, and refuses a changed body, an old one
    and another key."""
    terminals, key = pages.Terminals(tmp_path), "whsec_c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0"
    (source,) = [block.text for block in pages.blocks(ROOT / "docs" / "subscribe.md") if block.file == program]
    terminals.write(program, source)
    words = f"{'python3' if program.endswith('.py') else 'node'} {program}"
    printed = await terminals.open_terminal(pages.Block(language="sh", text=f"export CALLBACK_SECRET={key}\n{words}\n"))
    url = f"http://127.0.0.1:{terminals.others[9911 if program.endswith('.py') else 9912]}/results"

    def body(revision: int) -> bytes:
        files = [{"UserId": "alice", "Code": "Success", "RecordFile": "https://example.com/alice_1.mp4"}]
        return json.dumps({"TaskId": "01M82P1W6G35ZZ72N5K37968XS", "Revision": revision, "Files": files}).encode()

    ours = sender_module.WebhookSender(secret=key, allow=["127.0.0.1"])
    now_s = int(time.time())
    for revision in (2, 2, 1, 3):
        await ours.send(url, body(revision), webhook_id=f"t.{revision}", now_s=now_s)
    theirs = sender_module.WebhookSender(secret="another", allow=["127.0.0.1"])
    unsigned = sender_module.WebhookSender(allow=["127.0.0.1"])
    for sender, sent_s in ((theirs, now_s), (unsigned, now_s), (ours, now_s - 600), (ours, now_s + 600)):
        with pytest.raises(errors.DeliveryFailed, match="401"):
            await sender.send(url, body(4), webhook_id="t.4", now_s=sent_s)
    await terminals.leave()
    lines = [line.split()[1:4] for line in printed.read_text().splitlines()[1:] if "Success" in line]
    assert lines == [["2", "alice", "Success"], ["3", "alice", "Success"]]


@pytest.mark.timeout(240)
async def test_the_page_for_operators(running: pages.Follower) -> None:
    """Stuck sessions are found and replayed, and the rehearsal runs, as docs/operate.md states."""
    await running.follow(ROOT / "docs" / "operate.md")


DETAILS = r"^\| (`[^|]+) \| [^|]+ \| .+ \|$"


def test_quoted_details_exist_in_the_code() -> None:
    """Every detail that docs/operate.md quotes is in the code that writes it."""
    page = (ROOT / "docs" / "operate.md").read_text(encoding="utf-8")
    section = page.split("## Error messages")[1].split("## Replay")[0]
    quoted = [text for row in re.findall(DETAILS, section, re.MULTILINE) for text in re.findall(r"`([^`]+)`", row)]
    theirs = {"403", "sig", "package", "No space left on device", "COS 5…", "Detail"}
    packages = ("machine", "media", "tencent", "webhook", "handlers", "worker")
    code = "".join(path.read_text(encoding="utf-8") for package in packages for path in (ROOT / package).rglob("*.py"))
    missing = [t for t in quoted if t not in theirs and not all(piece.strip() in code for piece in t.split("…"))]
    assert len(quoted) > 12
    assert missing == []


GO_LIVE = ROOT / "docs" / "go-live.md"
NEEDS_OPENSSL = pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
ON_THE_MACHINE = (
    "useradd",
    "git",
    "cd",
    "install",
    "chown",
    "chmod",
    "systemctl",
    "journalctl",
    "nginx",
    "curl",
    "recorder-shell",
)


def machine_file(name: str) -> str:
    """A file that docs/go-live.md tells the reader to save."""
    (found,) = [block.text for block in pages.blocks(GO_LIVE) if block.file.endswith(name)]
    return found


@NEEDS_OPENSSL
async def test_the_commands_of_going_live(terminals: pages.Terminals) -> None:
    """In docs/go-live.md, commands that change a machine are known ones, the rest works when typed, and the named files exist."""
    by_hand = BY_HAND | dict.fromkeys(ON_THE_MACHINE, lambda _: None)
    follower = pages.Follower(terminals, by_hand=by_hand, aside=("json", "bash"))
    await follower.follow(GO_LIVE, only=lambda block: not block.file)
    assert (ROOT / "deploy" / "bootstrap.sh").is_file()


def test_the_settings_of_going_live() -> None:
    """A shell and systemd read the environment file alike, and the service accepts it."""
    lines = [line.split("=", 1) for line in machine_file("recorder.env").splitlines()]
    assert all(re.fullmatch(r"[A-Z_]+", name) and shlex.split(text) == [text] for name, text in lines)
    loaded = settings.load(dict(lines) | {"HOME": "/var/lib/recorder"})
    assert loaded.api_tokens
    assert set(loaded.trtc_keys) == set(loaded.trtc_callback_keys) == {1400000001}


def test_the_policy_of_going_live() -> None:
    """The policy allows the key exactly the uploader's operations: no reading, listing or deleting."""
    allowed = {
        action.removeprefix("name/cos:")
        for one in json.loads(machine_file("policy.json"))["statement"]
        for action in one["action"]
    }
    calls = set(re.findall(r"_sdk\.(\w+)\(|self\._sdk\.(\w+),", (ROOT / "tencent" / "cos_requests.py").read_text()))
    used = {(a or b).replace("create_multipart", "initiate_multipart").title().replace("_", "") for a, b in calls}
    # A listing only explains a refusal and is refused itself.
    assert used ^ allowed == {"ListObjects"}
    assert "ListObjects" in used


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd here")
def test_the_unit_of_going_live(tmp_path: Path) -> None:
    """systemd accepts the unit."""
    unit = tmp_path / "recorder.service"
    unit.write_text((ROOT / "deploy" / "recorder.service").read_text().replace("/opt/recorder/.venv/bin/recorder", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=60, check=False)
    assert [line for line in done.stderr.splitlines() if "recorder" in line] == []


@NEEDS_OPENSSL
def test_the_proxy_of_going_live(tmp_path: Path) -> None:
    """nginx accepts the configuration."""
    keys = [tmp_path / "fullchain.pem", tmp_path / "privkey.pem"]
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=recorder.example.com"]
    subprocess.run([*make, "-out", keys[0], "-keyout", keys[1]], capture_output=True, timeout=60, check=True)
    conf = machine_file("recorder.conf").replace("/etc/ssl/recorder/", f"{tmp_path}/")
    whole = f"pid {tmp_path}/pid; error_log stderr;\nevents {{}}\nhttp {{ access_log off;\n{conf}\n}}\n"
    (tmp_path / "nginx.conf").write_text(whole)
    done = subprocess.run(
        ["/usr/sbin/nginx", "-t", "-p", tmp_path, "-c", tmp_path / "nginx.conf"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_shell_of_going_live(tmp_path: Path) -> None:
    """recorder-shell has the settings, the commands and a token; this user replaces the service's."""
    env, shell = tmp_path / "recorder.env", tmp_path / "recorder-shell"
    env.write_text(machine_file("recorder.env"))
    text = (
        machine_file("recorder-shell").replace("/etc/recorder/recorder.env", str(env)).replace("/var/lib/recorder", str(tmp_path))
    )
    shell.write_text(text.replace("runuser -u recorder -- ", ""))
    output = subprocess.run(
        ["sh", shell], input="echo $RECORDER_TOKEN $SPOOL_DIR $PATH\n", capture_output=True, text=True, timeout=60, check=True
    ).stdout.split()
    assert output[0] == "put-the-first-one-here"
    assert output[2].startswith("/opt/recorder/.venv/bin:")


@pytest.mark.timeout(120)
async def test_the_demo(terminals: pages.Terminals) -> None:
    """The command of `make demo` ends with the output on the README, in a pipe without colors, whatever the environment asks."""
    (shown,) = [block.shows for block in pages.blocks(README) if "make demo" in block.lines]
    output = await terminals.type("FORCE_COLOR=1 PATH=$PWD/.venv/bin:$PATH recorder demo --seconds 3")
    assert "\x1b" not in output
    assert output.strip().endswith(shown.strip())
    assert "@$(BIN)/recorder demo\n" in (ROOT / "Makefile").read_text()


PAIRS = ("README", "docs/publish", "docs/subscribe", "docs/operate", "docs/go-live", "docs/cluster", "docs/migrate", "docs/bus")


@pytest.mark.parametrize("name", PAIRS)
def test_both_languages_have_the_same_blocks(name: str) -> None:
    """The Chinese page has exactly the blocks of the English one, as many sections, and links to pages in its own language."""
    english, chinese = ROOT / f"{name}.md", ROOT / f"{name}.zh-CN.md"
    assert pages.blocks(chinese) == pages.blocks(english)
    texts = [path.read_text(encoding="utf-8") for path in (english, chinese)]
    assert len({len(re.findall(r"^##+ ", text, re.MULTILINE)) for text in texts}) == 1
    assert len({len(re.findall(r"^\|", text, re.MULTILINE)) for text in texts}) == 1
    translated = {f"{Path(pair).name}.md" for pair in PAIRS}
    links = re.findall(r"\]\(([^)#\s]+)", texts[1].split("\n", 3)[3])
    assert [link for link in links if Path(link).name in translated] == []


@pytest.mark.parametrize("page", [README, ROOT / "README.zh-CN.md"], ids=lambda path: path.name)
def test_commands_inside_sentences_exist(page: Path) -> None:
    """Every command in a sentence of the README is a target of the Makefile, or a command of the recorder that a block runs."""
    typed = "\n".join(block.text for block in pages.blocks(README) if block.shell)
    for code in pages.inline_commands(page, ("make", "recorder", "curl")):
        words = code.split()
        if words[0] == "make":
            makes(words)
        else:
            ran = re.search(rf"\b{re.escape(code)}\b", typed) or words[:2] in (["recorder", "replay"], ["recorder", "stop"])
            assert ran, code


@pytest.mark.parametrize("page", PAIRS)
def test_anchors_lead_to_sections(page: str) -> None:
    """Every link to a section of our pages leads to one, in both languages."""
    for path in (ROOT / f"{page}.md", ROOT / f"{page}.zh-CN.md"):
        for link, anchor in re.findall(r"\]\(([^)#\s:]*)#([^)\s]+)\)", path.read_text(encoding="utf-8")):
            target = (path.parent / link).resolve() if link else path
            heads = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}
            assert anchor in slugs, f"{path.name}: {link}#{anchor}"


@pytest.mark.timeout(180)
async def test_the_page_for_migrating(terminals: pages.Terminals, running: pages.Follower) -> None:
    """The function's documented request, sent as docs/migrate.md states, brings the function's fields to the receiver."""
    follower = pages.Follower(terminals, aside=("json", "bash"))
    await follower.follow(ROOT / "docs" / "migrate.md")


def test_the_request_of_migrating() -> None:
    """The old request in docs/migrate.md is a valid start, and the page names every field of request and result."""
    page = ROOT / "docs" / "migrate.md"
    (request,) = [json.loads(block.text) for block in pages.blocks(page) if block.language == "json"]
    codec.check("start", request)
    defs = codec.schemas()["$defs"]
    names = {*defs["start"]["properties"], *defs["session-finished"]["properties"]}
    text = page.read_text(encoding="utf-8")
    assert [name for name in sorted(names) if f"`{name}" not in text] == []

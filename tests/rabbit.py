"""A private RabbitMQ broker for tests: own folder, free ports, loopback only; it ends with the process that started it.

Debian's wrapper in /usr/sbin changes the user and refuses such folders, so the server's own script is run. Erlang's port mapper,
epmd, is a child process too: started by the broker it would stay behind as a daemon. Tests share the one broker and its one
vhost, separated by the prefix of their exchanges and queues.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from tests import certificates, ports, process_freeze, run_folders, waiting

SCRIPT = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
START_LIMIT_S = 90.0

CONFIG = """\
listeners.tcp.1 = 127.0.0.1:{port}
listeners.ssl.1 = 127.0.0.1:{tls_port}
ssl_options.certfile = {certificates.certificate}
ssl_options.keyfile = {certificates.key}
ssl_options.verify = verify_none
disk_free_limit.absolute = 50MB
vm_memory_high_watermark.absolute = 2GB
log.console = false
log.file.level = warning
default_user = recorder
default_pass = recorder
"""
CLUSTERED = """\
cluster_formation.peer_discovery_backend = classic_config
cluster_formation.classic_config.nodes.{number} = {name}@localhost
"""
# Few schedulers that do not spin, and no listener beyond loopback.
ERLANG = "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none -kernel inet_dist_use_interface {127,0,0,1}"


class Broker:
    """One broker. `restart` is orderly, `kill` a crash; messages of durable queues survive both."""

    def __init__(self, name: str = "rabbit", *, cluster: Sequence[str] = (), beside: Broker | None = None) -> None:
        """`cluster`: the names of all nodes of its cluster; `beside`: the node whose port mapper it uses."""
        if not SCRIPT.exists():
            raise RuntimeError("RabbitMQ is not installed: apt-get install rabbitmq-server")
        self._folder = run_folders.make("rabbit")
        self._epmd: subprocess.Popen[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count(1)
        self.port, self._dist_port, self._epmd_port, self._tls_port = (ports.free() for _ in range(4))
        self.name = name
        self._beside = beside
        if beside is not None:
            self._epmd_port = beside._epmd_port
        self.certificates = certificates.make(self._folder)
        configured = CONFIG.format(port=self.port, tls_port=self._tls_port, certificates=self.certificates)
        configured += "".join(CLUSTERED.format(number=number, name=peer) for number, peer in enumerate(cluster, 1))
        (self._folder / "rabbitmq.conf").write_text(configured)
        if cluster:
            cookie = self._folder / ".erlang.cookie"
            cookie.write_text("recorder")
            cookie.chmod(0o400)
        (self._folder / "enabled_plugins").write_text("[].\n")

    @property
    def pid(self) -> int:
        """The process of the running broker."""
        assert self._process is not None
        return self._process.pid

    @property
    def url(self) -> str:
        """Its URL, with user and password."""
        return f"amqp://recorder:recorder@127.0.0.1:{self.port}/"

    def tls_url(self, host: str, trusted: Path) -> str:
        """Its TLS URL, for a client that trusts only this authority."""
        return f"amqps://recorder:recorder@{host}:{self._tls_port}/?cafile={trusted}"

    def start(self) -> None:
        """Start, and wait until it accepts connections; no effect if it runs. Call from the main thread: the broker dies with the
        thread."""
        if self._epmd is None and self._beside is None:
            epmd = shutil.which("epmd")
            assert epmd is not None, "epmd comes with erlang-base"
            self._epmd = self._spawn([epmd, "-address", "127.0.0.1", "-port", str(self._epmd_port)])
        if self._process is None:
            self._process = self._spawn([str(SCRIPT)])
            self.wait()

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it: SIGTERM is orderly, SIGKILL a crash. No effect if it does not run."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(how)
            try:
                process.wait(waiting.limit_s(30))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)

    def kill(self) -> None:
        """A crash, with all metadata on disk: RabbitMQ 3.10.8 writes it there some time after a queue was declared. After a crash
        before that the queue answers nobody, and the tests are not about that."""
        self.evaluate("mnesia:sync_log()", "lists:foreach(fun dets:sync/1, dets:all())")
        self.stop(signal.SIGKILL)

    def suspend(self, queue: str) -> None:
        """Let a quorum queue answer and confirm nothing, as one without a leader does, until `resume`."""
        self.evaluate(f"sys:suspend({_process(queue)})")

    def resume(self, queue: str) -> None:
        """Let it go on."""
        self.evaluate(f"sys:resume({_process(queue)})")

    def restart(self) -> None:
        """Stop and start it, with all durable queues."""
        self.stop()
        self.start()

    async def restart_beside(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Like `restart`, or after a crash, while the caller's loop keeps running."""
        await asyncio.to_thread(self.stop, how)
        self._process = self._spawn([str(SCRIPT)])
        await asyncio.to_thread(self.wait)

    def freeze(self) -> None:
        """Freeze it: connections stay open, nothing is answered."""
        assert self._process is not None
        process_freeze.freeze(self._process.pid)

    def thaw(self) -> None:
        """Unfreeze it."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def remove(self) -> None:
        """Stop it and delete its folder."""
        self.stop(signal.SIGKILL)
        epmd, self._epmd = self._epmd, None
        if epmd is not None:
            epmd.kill()
            epmd.wait(10)
        shutil.rmtree(self._folder, ignore_errors=True)

    def queues(self, prefix: str) -> list[dict[str, Any]]:
        """The broker's list of queues whose names begin with `prefix`: name, type, durable, arguments."""
        listed = self.control("list_queues", "name", "type", "durable", "arguments", "leader", "online", "--formatter", "json")
        return [queue for queue in json.loads(listed) if queue["name"].startswith(prefix)]

    def control(self, *words: str) -> bytes:
        """What `rabbitmqctl` prints for a command."""
        command = [str(SCRIPT.with_name("rabbitmqctl")), "-q", *words]
        return subprocess.run(command, env=self._environment(), check=True, capture_output=True).stdout

    def evaluate(self, *calls: str) -> None:
        """Call Erlang functions on the node, one after the other; a second of CPU less than `rabbitmqctl` takes for one of them.
        Raises AssertionError unless each returns ok."""
        code = ", ".join(f"ok = {call}" for call in calls)
        command = ["erl_call", "-sname", f"{self.name}@localhost", "-e"]
        environment = self._environment()
        done = subprocess.run(command, input=f"{code}.\n".encode(), env=environment, check=False, capture_output=True)
        assert done.stdout == b"{ok, ok}", (calls, done.stdout, done.stderr)

    def add_user(self, name: str, password: str, *rights: str) -> None:
        """Add a user who may configure, write and read what matches these three patterns."""
        who, secret, place, by = (text(each) for each in (name, password, "/", "tests"))
        self.evaluate(
            f"rabbit_auth_backend_internal:add_user({who}, {secret}, {by})",
            f"rabbit_auth_backend_internal:set_permissions({', '.join([who, place, *map(text, rights), by])})",
        )

    def limit_topics(self, name: str, exchange: str, *rights: str) -> None:
        """Let a user write and read at an exchange only under keys that match these two patterns."""
        words = ", ".join(map(text, (name, "/", exchange, *rights, "tests")))
        self.evaluate(f"rabbit_auth_backend_internal:set_topic_permissions({words})")

    @contextlib.asynccontextmanager
    async def impatient(self, held_ms: int) -> AsyncIterator[None]:
        """While the context is open, the broker closes a channel that holds a delivery for longer than this, instead of 30 min;
        it checks four times a second, instead of once a minute."""
        await asyncio.to_thread(self._set, consumer_timeout=held_ms, channel_tick_interval=250)
        try:
            yield
        finally:
            await asyncio.to_thread(self._set, consumer_timeout=1_800_000, channel_tick_interval=60_000)

    def _set(self, **values: int) -> None:
        self.evaluate(*(f"application:set_env(rabbit, {name}, {value})" for name, value in values.items()))

    def prefix(self) -> str:
        """A name of its own for the exchanges and queues of one test."""
        return f"t{os.getpid()}x{next(self._numbers)}"

    def _spawn(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        # It dies with this process in any case. RABBITMQ_ALLOW_INPUT makes the script exec the Erlang machine instead of starting
        # it as a child: the process held here is the broker itself.
        with (self._folder / "log").open("ab") as log:
            tied = ["setpriv", "--pdeathsig", "KILL", "--", *command]
            return subprocess.Popen(tied, env=self._environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _environment(self) -> dict[str, str]:
        folder = str(self._folder)
        return {
            "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
            "LANG": "C.UTF-8",
            "HOME": folder,
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"{self.name}@localhost",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_MNESIA_BASE": f"{folder}/mnesia",
            "RABBITMQ_LOG_BASE": f"{folder}/logs",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/enabled_plugins",
            "RABBITMQ_CONFIG_FILE": f"{folder}/rabbitmq",
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_ALLOW_INPUT": "1",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"-noinput {ERLANG}",
        }

    def wait(self) -> None:
        """Wait until it accepts connections."""
        limit_s = time.monotonic() + waiting.limit_s(START_LIMIT_S)
        while not self._answers():
            assert self._process is not None
            if time.monotonic() > limit_s or self._process.poll() is not None:
                raise RuntimeError((self._folder / "log").read_text(errors="replace")[-2000:])
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.1)

    def _answers(self) -> bool:
        """Whether it speaks AMQP: it answers nonsense with its own protocol header and closes."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=2) as probe:
                probe.sendall(b"AMQP\x00\x00\x00\x00")
                return probe.recv(4) == b"AMQP"
        except OSError:
            return False


def text(value: str) -> str:
    """A text as an Erlang literal."""
    return '<<"' + value.replace("\\", "\\\\").replace('"', '\\"') + '">>'


def _process(queue: str) -> str:
    """The Erlang process of a quorum queue."""
    return f"amqqueue:get_pid(element(2, rabbit_amqqueue:lookup(rabbit_misc:r({text('/')}, queue, {text(queue)}))))"


def cluster(size: int = 3) -> list[Broker]:
    """The started nodes of one cluster, each to be removed, the first one last. Call from the main thread."""
    names = [f"rabbit{number}" for number in range(1, size + 1)]
    first = Broker(names[0], cluster=names)
    nodes = [first, *(Broker(name, cluster=names, beside=first) for name in names[1:])]
    for node in nodes:
        node.start()
    return nodes


@functools.cache
def shared() -> Broker:
    """The one broker of this test process, started at its first use and removed at its end."""
    broker = Broker()
    atexit.register(broker.remove)
    broker.start()
    return broker

"""``probe --serve``: the metrics over HTTP."""

from __future__ import annotations

import errno
import socket
from socketserver import TCPServer, ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from ...machine.live import Machine
from ...watch.metrics import MachineCollector, registry_of
from ...watch.node_watch import NodeWatch
from ..errors import CommandError
from ..shell import status_of

_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


class _Server(ThreadingMixIn, WSGIServer):
    """One thread for each request. Listens in one address family; ``::`` also accepts IPv4."""

    daemon_threads = True

    def __init__(self, family: int, host: str, port: int) -> None:
        self.address_family = family
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        TCPServer.server_bind(self)
        # Not HTTPServer.server_bind, which looks up the host's name and may wait for DNS.
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    @property
    def url(self) -> str:
        """Address of the metrics."""
        host = f"[{self.server_name}]" if ":" in self.server_name else self.server_name
        return f"http://{host}:{self.server_port}/metrics"


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


def _listen(host: str, port: int) -> _Server:
    """A server bound to ``host``; without a host, to all addresses of this machine."""
    if not host:
        try:
            return _Server(socket.AF_INET6, "::", port)
        except OSError as error:
            if error.errno not in _NO_IPV6:
                raise
            return _Server(socket.AF_INET, "0.0.0.0", port)
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return _Server(family, str(address[0]), port)


def serve(machine: Machine, address: str, interval_s: float) -> int:
    """Serve metrics at ``[HOST]:PORT`` until Ctrl-C or SIGTERM, and return the exit status.

    Raises:
        CommandError: prometheus-client is not installed, or the address is invalid or in use.
    """
    host, _, port = address.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise CommandError(f"--serve takes [HOST]:PORT, as in :9400 or 127.0.0.1:9400, got {address!r}")
    try:
        from prometheus_client import make_wsgi_app
    except ImportError as error:
        raise CommandError("--serve needs prometheus-client: pip install prometheus-client") from error
    watch = NodeWatch(machine.node.devices, machine, interval_s=interval_s)
    try:
        server = _listen(host.strip("[]"), int(port))
    except (OSError, UnicodeError) as error:
        raise CommandError(f"--serve {address}: {getattr(error, 'strerror', None) or error}") from error
    server.set_app(make_wsgi_app(registry_of(MachineCollector(watch))))
    try:
        watch.now()
        watch.start(server)
        print(server.url, flush=True)
        server.serve_forever()
    except KeyboardInterrupt as interrupt:
        return status_of(interrupt)
    finally:
        watch.stop(server)
        server.server_close()
    return 0

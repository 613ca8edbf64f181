"""A server in a thread of this process: its socket, its start and its end."""

import asyncio
import atexit
import errno
import ipaddress
import os
import socket
import threading
import time
import urllib.request

import uvicorn

try:
    import resource
except ImportError:  # Windows has no limit of open files
    resource = None

from tiny_models.server.app import build_app
from tiny_models.server.interface import Engine
from tiny_models.server.turns import ModelEngine

SPARE_FILES = 32  # kept free of connections: an answer opens files, too


class Server:
    """A running server; `serve` makes one. Use as a context manager, or `close()` it.

    base_url: for the client, "http://127.0.0.1:PORT/v1". port: the port. model: the id.
    """

    def __init__(
        self,
        engine: Engine,
        listener: socket.socket,
        defaults: dict[str, float] | None = None,
    ):
        host, self.port = listener.getsockname()[:2]
        local = ipaddress.ip_address(host.partition("%")[0]).is_loopback
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        host = f"[{host}]" if ":" in host else host
        self.base_url = f"http://{host}:{self.port}/v1"
        self.model = engine.name
        self._engine = engine
        self._uvicorn = uvicorn.Server(
            uvicorn.Config(
                build_app(engine, local=local, defaults=defaults),
                loop="asyncio",
                http="h11",
                ws="none",
                lifespan="off",
                log_level="critical",
                access_log=False,
                backlog=128,
                timeout_graceful_shutdown=2,
            )
        )
        # A daemon, so that a kernel or script that forgets close() can end.
        self._thread = threading.Thread(
            target=asyncio.run,
            args=(self._serve(listener),),
            name="tiny-models-server",
            daemon=True,
        )
        self._thread.start()
        while not self._uvicorn.started and self._thread.is_alive():
            time.sleep(0.005)
        if not self._uvicorn.started:
            raise RuntimeError("the server's thread ended before it could serve")
        atexit.register(self.close)

    async def _serve(self, listener: socket.socket) -> None:
        asyncio.get_running_loop().set_exception_handler(_quietly_full)
        await self._uvicorn.serve([listener])
        # Clients that never read what was sent to them: let go of their sockets.
        await asyncio.sleep(0)
        for connection in list(self._uvicorn.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)

    def close(self) -> None:
        """Stop. Answers in the making end with an error that says so; a client that
        neither sends nor reads is given two seconds."""
        atexit.unregister(self.close)
        self._engine.stop()
        self._uvicorn.should_exit = True
        self._thread.join()
        self._engine.close()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "" if self.running else ", closed"
        return f"Server({self.base_url}, model={self.model!r}{state})"


class _Listener(socket.socket):
    """Lets nobody in while the process has hardly a file left that it may open: they
    wait in the system's queue. An answer opens files itself (a seed comes from one)."""

    _told = float("-inf")  # when asyncio was told to wait

    def accept(self):
        if not _is_full(self.fileno()):
            return super().accept()
        # asyncio goes on at once after the first of these errors, to try again in a
        # second, and gives up for now at the second.
        if time.monotonic() - self._told < 0.5:
            raise BlockingIOError
        self._told = time.monotonic()
        raise OSError(errno.EMFILE, "too many open files")


def _is_full(any_file: int) -> bool:
    if resource is None:
        return False
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return False
    try:
        lowest_free = os.dup(any_file)
    except OSError:
        return True
    os.close(lowest_free)
    return lowest_free >= soft - SPARE_FILES


def _quietly_full(loop: asyncio.AbstractEventLoop, context: dict) -> None:
    """No need to say each second that the process may open no more files."""
    if getattr(context.get("exception"), "errno", None) not in (
        errno.EMFILE,
        errno.ENFILE,
    ):
        loop.default_exception_handler(context)


def serve(
    model,
    tokenizer,
    *,
    name: str | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    temperature: float = 1.0,
    top_p: float = 1.0,
    kernels: bool = False,
) -> Server:
    """Serve a loaded model over HTTP, from a thread of this process.

    name: the model's id for clients; by default the model's own name.
    port: 0 takes any free one. Raises OSError if the address cannot be had.
    temperature, top_p: for requests that give none.
    kernels: calculate with the kernels of lesson 14 instead of the model: many times
    faster, for Llama models, on the CPU. Greedy texts stay those of `generate`; of
    sampled ones a token may differ now and then, where two numbers are as good as
    equal. The first time they are compiled, which takes half a minute. Raises
    ValueError for a model that they do not know.
    On a loopback address only requests for localhost are answered; on any other,
    everybody who can reach it may use the server.
    The model is shared, not copied. The tokenizer is copied: a chat template set
    afterwards does not count. Where the environment names a proxy, `host` is added to
    NO_PROXY.
    """
    return serve_engine(
        ModelEngine(model, tokenizer, name, kernels=kernels),
        host=host,
        port=port,
        temperature=temperature,
        top_p=top_p,
    )


def serve_engine(
    engine: Engine,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> Server:
    """Serve any `Engine` (see `interface`). Closing the server closes the engine, and
    so does an address that cannot be had."""
    listener = None
    try:
        if not 0 <= temperature <= 2:
            raise ValueError(f"temperature is {temperature}, but must be from 0 to 2")
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p is {top_p}, but must be above 0 and at most 1")
        defaults = {"temperature": temperature, "top_p": top_p}
        _reach_without_proxy(host)
        listener = _listen(host, port)
        return Server(engine, listener, defaults)
    except BaseException:
        if listener is not None:
            listener.close()
        engine.close()
        raise


def _reach_without_proxy(host: str) -> None:
    """A proxy cannot reach this machine's loopback, and httpx would ask it to."""
    if not urllib.request.getproxies():
        return
    for name in ("NO_PROXY", "no_proxy"):
        hosts = [h for h in os.environ.get(name, "").split(",") if h]
        os.environ[name] = ",".join(dict.fromkeys([*hosts, host]))


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket: from here on clients can connect, and nobody else has it."""
    if not 0 <= port <= 65535:
        raise ValueError(f"port is {port}, but must be from 0 (any free one) to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        made = socket.create_server((host, port), family=family)
        return _Listener(fileno=made.detach())
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            reason = (
                f"port {port} on {host} is in use: close the server that has it, "
                "or choose another port (0 takes any free one)"
            )
        else:
            reason = f"cannot serve on {host} port {port}: {error.strerror or error}"
        raise OSError(error.errno, reason) from error

"""The command `python -m tiny_models.server`."""

import argparse
import signal
import socket
import sys
import threading

WANTED_FILES = 4096  # each connection is an open file; many systems allow 256 or 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tiny_models.server",
        description="Serve a model with an OpenAI-compatible API until Ctrl-C.",
        epilog="PyTorch uses a thread for each core; where other programs need them, "
        "set OMP_NUM_THREADS=1 before you start.",
    )
    parser.add_argument(
        "--model", help="a hub id or a folder (default: $COURSE_MODEL, or the course's)"
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="the address to serve on (default: 127.0.0.1, this machine alone). With "
        "0.0.0.0 anyone on the network may use the server",
    )
    parser.add_argument("--port", type=int, default=8000, help="(default: 8000)")
    parser.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        help="for requests that give none (default: 1)",
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        help="for requests that give none (default: 1)",
    )
    parser.add_argument(
        "--kernels",
        action="store_true",
        help="calculate with the kernels of lesson 14: many times faster, for Llama "
        "models, on the CPU; compiled the first time, which takes half a minute",
    )
    options = parser.parse_args()

    from tiny_models.loading import load
    from tiny_models.server.running import serve
    from tiny_models.weights import ModelNotAvailable

    allow_more_files()
    try:
        model, tokenizer = load(options.model)
        names = ("temperature", "top_p", "kernels")
        settings = {name: getattr(options, name) for name in names}
        place = {"host": options.host, "port": options.port}
        with serve(model, tokenizer, **place, **settings) as server:
            stopped = stop_on_signals()
            print(f"{server.model} at {server.base_url} (Ctrl-C stops)", flush=True)
            if line := open_to_others(options.host, server.port):
                print(line, flush=True)
            while server.running and not stopped.wait(0.2):
                pass
    except KeyboardInterrupt:
        print()
    except (ModelNotAvailable, OSError, ValueError) as error:
        sys.exit(str(error))


def stop_on_signals() -> threading.Event:
    """An event that Ctrl-C and SIGTERM set. A second one changes nothing, so that it
    does not interrupt the end, which takes a second or two."""
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    return stopped


def open_to_others(host: str, port: int) -> str | None:
    """What to say where other machines may connect; None on a loopback address."""
    if host not in ("0.0.0.0", "::"):
        local = host == "localhost" or host.startswith("127.") or host == "::1"
        return None if local else ANYONE
    own = own_address(socket.AF_INET6 if ":" in host else socket.AF_INET)
    if own is None:
        return f"{ANYONE} Its address on the network is not known here."
    own = f"[{own}]" if ":" in own else own
    return f"{ANYONE} From other machines: http://{own}:{port}/v1"


ANYONE = "Anyone on the network may use this server: it asks for no key."


def own_address(family: socket.AddressFamily) -> str | None:
    """This machine's address as others see it."""
    # To connect a datagram socket sends nothing, but chooses the way. The addresses
    # are kept for documentation.
    there = "2001:db8::1" if family == socket.AF_INET6 else "192.0.2.1"
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((there, 9))
            return probe.getsockname()[0]
        except OSError:
            return None


def allow_more_files() -> None:
    """Raise the soft limit of open files as far as is allowed and sensible."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    wanted = WANTED_FILES if hard == unlimited else min(hard, WANTED_FILES)
    if soft != unlimited and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))

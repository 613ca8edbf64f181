"""A door to a server that now and then does not open, for lesson 18."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx


class Flaky:
    """Passes POST requests on to the server at `base_url`; the first of every `often`
    gets an error 503 instead. Use as a context manager.

    base_url: its own, in its place. asked, failed: how many requests came and failed.
    """

    def __init__(self, base_url: str, often: int):
        self.asked = self.failed = 0
        lock = threading.Lock()
        door = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with lock:
                    fails = door.asked % often == 0
                    door.asked += 1
                    door.failed += fails
                if fails:
                    return self._answer(503, b"")
                there = httpx.post(
                    base_url + self.path,
                    content=body,
                    headers={"Content-Type": "application/json"},
                    timeout=300,
                )
                return self._answer(there.status_code, there.content)

            def _answer(self, status, content):
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.base_url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

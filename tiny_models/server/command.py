"""The command `python -m tiny_models.server`."""

import argparse
import sys
import time


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tiny_models.server",
        description="Serve a model with an OpenAI-compatible API until Ctrl-C.",
    )
    parser.add_argument(
        "--model", help="a hub id or a folder (default: $COURSE_MODEL, or the course's)"
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()

    from tiny_models import server as package
    from tiny_models.loading import load
    from tiny_models.weights import ModelNotAvailable

    try:
        model, tokenizer = load(options.model)
        place = {"host": options.host, "port": options.port}
        with package.serve(model, tokenizer, **place) as server:
            print(f"{server.model} at {server.base_url} (Ctrl-C stops)", flush=True)
            while server.running:
                time.sleep(0.2)
    except KeyboardInterrupt:
        print()
    except (ModelNotAvailable, OSError, ValueError) as error:
        sys.exit(str(error))

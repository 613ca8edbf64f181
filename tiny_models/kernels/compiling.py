"""How the kernels are compiled, and where the result is kept.

Compiling takes seconds. So the compiled code is kept beside the model, in a folder that
is named after the source: numba itself notices a change of the file that defines a
function, but not of the files that this one imports.
"""

import hashlib
import os
import threading
from contextlib import contextmanager
from pathlib import Path

from numba import config, njit

from tiny_models.weights import cache_folder

# nogil: several threads can run the same function. No fastmath: it lets LLVM compute
# the same loop in two ways and choose by where arrays happen to lie in memory, and then
# the last bit of a result is a matter of luck.
OPTIONS = {"error_model": "numpy", "nogil": True}
inner = njit(**OPTIONS)
# A sum over an array, or its maximum, becomes vector instructions only where its order
# is free. It is chosen when the function is compiled, and depends on the length alone.
reduction = njit(fastmath={"reassoc", "nsz", "nnan"}, **OPTIONS)


def outer(function):
    """Compile a function that Python calls, and keep the machine code for next time."""
    folder = _folder()
    if folder is None:
        return inner(function)
    before = config.CACHE_DIR
    config.CACHE_DIR = str(folder)
    try:
        return njit(cache=True, **OPTIONS)(function)
    except RuntimeError:  # numba finds no place where it may write
        return inner(function)
    finally:
        config.CACHE_DIR = before


def _folder() -> Path | None:
    """Where this version's machine code is kept; None where nothing can be written."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources))
    folder = cache_folder() / "kernels" / digest.hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


_compiled = set()


@contextmanager
def announced(what: str):
    """Says that `what` is being compiled, where its first call takes over a second."""
    if what in _compiled:
        yield
        return
    said = f"Compiling the kernels for {what} (the first time, seconds)."
    timer = threading.Timer(1.0, print, [said])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        _compiled.add(what)

"""Notebooks in a real JupyterLab, driven through a browser as a learner drives them.

    python start.py browser solutions/04_top_k.ipynb pictures --run

opens a copy of the course, runs all cells (with --run) and writes the whole notebook
as pictures/page-01.png, page-02.png, ...; the repository itself is not touched. Needs
Playwright (requirements-teach.txt) and a Chromium or Chrome: $CHROMIUM, or one that is
found on the PATH or in the usual places.
"""

import argparse
import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from course.paths import ROOT

WIDTH, HEIGHT = 1300, 1600  # pixels of a picture
OVERLAP = 60  # pixels shared by two pictures, so that no line is lost at the cut
COPIED = ("course", "tiny_models", "tests", "lessons", "solutions", "pyproject.toml")
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PLACES = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    r"C:\Program Files\Google\Chrome\Application\chrome.exe",
    r"C:\Program Files (x86)\Microsoft\Edge\Application\msedge.exe",
)
# JupyterLab's own settings: every cell in the page at once, and no pop-up over it.
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none", "scrollPastEnd": False},
    "apputils-extension/notification": {"fetchNews": "false"},
}


def find_browser() -> str | None:
    """Path of a Chromium or Chrome; None without one. $CHROMIUM, if set, decides."""
    chosen = os.environ.get("CHROMIUM")
    candidates = [chosen] if chosen else [*NAMES, *PLACES]
    return next(filter(None, map(shutil.which, candidates)), None)


@contextlib.contextmanager
def lab(course: Path = ROOT):
    """A running JupyterLab on a copy of `course`, and a browser: gives a `Lab`.

    The copy is also what `import course` finds there, so that `carry` and `check` use
    the copied lessons. It is deleted at the end, and every process is stopped.
    """
    from playwright.sync_api import sync_playwright

    executable = find_browser()
    if executable is None:
        raise RuntimeError(
            "no Chromium or Chrome found: install one (Debian: apt install chromium) "
            "or put the path of yours in the environment variable CHROMIUM"
        )
    with contextlib.ExitStack() as stack:
        temporary = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="lab-", ignore_cleanup_errors=True)
        )
        home = Path(temporary).resolve()
        root = home / "course"
        copy_course(course, root)
        url, token = stack.enter_context(_server(root, home))
        playwright = stack.enter_context(sync_playwright())
        browser = playwright.chromium.launch(
            executable_path=executable,
            # Chromium's sandbox does not work for root nor in most containers. The
            # only pages that it is shown here are JupyterLab's own.
            args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
        )
        stack.callback(browser.close)
        yield Lab(root, url, token, browser)


def copy_course(course: Path, target: Path):
    """Copy what the notebooks need, without caches and build leftovers."""
    target.mkdir(parents=True)
    ignore = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "*.egg-info")
    for name in COPIED:
        if (course / name).is_dir():
            shutil.copytree(course / name, target / name, ignore=ignore)
        elif (course / name).exists():
            shutil.copy(course / name, target / name)


@contextlib.contextmanager
def _server(root: Path, home: Path):
    """JupyterLab serving `root`, with settings of its own in `home`: (URL, token)."""
    for name, settings in SETTINGS.items():
        path = home / f"settings/@jupyterlab/{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings), encoding="utf-8")
    token = secrets.token_hex(16)
    env = {
        **os.environ,
        "PYTHONPATH": str(root),
        "JUPYTER_TOKEN": token,
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),  # no kernel but this environment's own
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1"]
    command += ["--port=0", "--expose-app-in-browser", f"--ServerApp.root_dir={root}"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")
    log = home / "jupyterlab.log"
    with log.open("w") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out, env=env)
    try:
        yield _wait_for_url(server, home / "runtime", log), token
    finally:
        server.terminate()  # it stops its kernels
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _wait_for_url(server, runtime: Path, log: Path, seconds: float = 90) -> str:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.poll() is None:
        for path in runtime.glob("jpserver-*.json"):
            with contextlib.suppress(ValueError):  # being written
                return json.loads(path.read_text(encoding="utf-8"))["url"]
        time.sleep(0.2)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    raise RuntimeError(f"JupyterLab did not start within {seconds:.0f} s:\n{tail}")


class Lab:
    """A JupyterLab in a browser. `root` is the folder of the copied course."""

    def __init__(self, root: Path, url: str, token: str, browser):
        self.root, self._url, self._token, self._browser = root, url, token, browser

    def open(self, path: str) -> "Notebook":
        """Open the notebook `path`, relative to the course; its kernel is ready."""
        if not (self.root / path).is_file():
            raise FileNotFoundError(f"the course has no notebook {path}")
        page = self._browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto(f"{self._url}lab/tree/{path}?reset&token={self._token}")
        page.wait_for_selector(".jp-NotebookPanel .jp-Cell", timeout=90_000)
        return Notebook(page)


class Notebook:
    """An open notebook. A cell is given by its index, as in `cells()`."""

    def __init__(self, page):
        self.page = page
        self._do(
            "if (!app.shell.leftCollapsed) app.shell.collapseLeft();"
            "await panel.context.ready; await panel.sessionContext.ready;"
            # A run that is asked for before the kernel answers is lost.
            "await panel.sessionContext.session.kernel.info;"
        )

    def _do(self, script: str, argument=None, seconds: float = 60):
        """Run JavaScript in the page, with JupyterLab's `app` and `panel` at hand."""
        return self.page.evaluate(
            """async ([script, argument, seconds]) => {
                const app = window.jupyterapp, panel = app.shell.currentWidget;
                const Async = (async () => {}).constructor;
                const work = new Async("app", "panel", "argument", script);
                let timer;
                const late = new Promise((_, reject) => { timer = setTimeout(() =>
                    reject(new Error(`not done after ${seconds} s`)), seconds * 1000);
                });
                try {
                    return await Promise.race([work(app, panel, argument), late]);
                } finally { clearTimeout(timer); }
            }""",
            [script, argument, seconds],
        )

    def cells(self) -> list[dict]:
        """The cells as they stand in the browser, in nbformat's form."""
        return self._do("return panel.content.model.toJSON().cells")

    def cell(self, text: str) -> int:
        """Index of the first code cell with `text` in its source; else LookupError."""
        for index, cell in enumerate(self.cells()):
            if cell["cell_type"] == "code" and text in "".join(cell["source"]):
                return index
        raise LookupError(f"no code cell contains {text!r}")

    def clear(self):
        """Edit > Clear Outputs of All Cells; then nothing counts as run."""
        self._do("await app.commands.execute('editmenu:clear-all')")

    def run_all(self, seconds: float = 300):
        """Run > Run All Cells, and wait for the end.

        JupyterLab asks the kernel for all cells at once, and its command returns at the
        first error, while cells behind it may still run. What is asked for last is
        answered last.
        """
        self._do(
            "await app.commands.execute('notebook:run-all-cells');"
            "const last = { code: '', silent: true, stop_on_error: false };"
            "await panel.sessionContext.session.kernel.requestExecute(last).done;",
            None,
            seconds,
        )

    def run_cell(self, index: int, seconds: float = 120):
        """Select a cell, run it, and wait for its end."""
        self._do(
            "panel.content.deselectAll(); panel.content.activeCellIndex = argument;"
            "await app.commands.execute('notebook:run-cell')",
            index,
            seconds,
        )

    def type_into(self, index: int, text: str):
        """Click into a code cell and replace what it holds from the keyboard."""
        cell = self.page.locator(".jp-NotebookPanel:visible .jp-Cell").nth(index)
        cell.scroll_into_view_if_needed()
        cell.locator(".cm-content").click()
        self.page.keyboard.press("ControlOrMeta+a")
        self.page.keyboard.insert_text(text)

    def save(self):
        """File > Save Notebook, into the copy of the course."""
        self._do("await app.commands.execute('docmanager:save')")

    def shown(self, index: int) -> str:
        """What a reader sees below a cell, as text ("" without any output)."""
        cell = self.page.locator(".jp-NotebookPanel:visible .jp-Cell").nth(index)
        return "\n".join(cell.locator(".jp-OutputArea-output").all_inner_texts())

    def errors(self) -> list[str]:
        """Every error among the outputs: "cell 7: ValueError: ..."."""
        return [
            f"cell {index}: {output['ename']}: {output['evalue']}"
            for index, cell in enumerate(self.cells())
            for output in cell.get("outputs", ())
            if output["output_type"] == "error"
        ]

    def not_run(self) -> list[int]:
        """Indices of the code cells (with code in them) that have not been run."""
        return [
            index
            for index, cell in enumerate(self.cells())
            if cell["cell_type"] == "code"
            and "".join(cell["source"]).strip()
            and cell["execution_count"] is None
        ]

    def pictures(self, folder: Path) -> list[Path]:
        """Write the whole notebook, from the top, as page-01.png ... in `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("page-[0-9][0-9].png"):
            old.unlink()
        area = self.page.locator(".jp-NotebookPanel:visible .jp-WindowedPanel-outer")
        self.page.evaluate("document.fonts.ready.then(() => true)")
        self.page.wait_for_timeout(1000)  # formulas are typeset after the text
        step = int(area.bounding_box()["height"]) - OVERLAP
        written, top = [], 0
        while True:
            reached, end = area.evaluate(
                "(e, top) => { e.scrollTop = top;"
                " return [e.scrollTop, e.scrollHeight - e.clientHeight] }",
                top,
            )
            self.page.wait_for_timeout(200)
            written.append(folder / f"page-{len(written) + 1:02d}.png")
            area.screenshot(path=written[-1])
            if reached >= end - 1:
                return written
            top = reached + step


def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python start.py browser",
        description="Picture a notebook as JupyterLab shows it.",
    )
    parser.add_argument("notebook", help="for example solutions/04_top_k.ipynb")
    parser.add_argument("folder", type=Path, help="where page-01.png ... are written")
    parser.add_argument("--run", action="store_true", help="Run All Cells first")
    options = parser.parse_args(arguments)
    path = Path(options.notebook).resolve()
    if not path.is_file() or not path.is_relative_to(ROOT):
        sys.exit(f"{options.notebook} is no notebook of this course")
    with lab() as jupyter:
        notebook = jupyter.open(path.relative_to(ROOT).as_posix())
        if options.run:
            notebook.run_all()
        for picture in notebook.pictures(options.folder):
            print(picture)
        errors = notebook.errors()
        print("\n".join(errors) or "no errors")
    sys.exit(1 if errors else 0)


if __name__ == "__main__":
    main()

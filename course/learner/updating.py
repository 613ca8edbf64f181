"""`python start.py update`: the newest version of the course, with the learner's
answers kept. It is `git pull` for notebooks that were worked in.

The order keeps everything: first all is looked at and merged in memory, then each
notebook that the learner has changed is copied to backups/, and only then is anything
changed. What cannot be done without a loss is not begun, and a sentence says why.
"""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from course.kit.words import counted
from course.learner import backups, merging
from course.paths import COMMAND, INSTALLED, LESSONS, PIP, ROOT
from course.saved import books


class CannotUpdate(Exception):
    """Why, and what to do. Nothing was changed."""


@dataclass
class Merged:
    path: Path
    text: str
    notes: list[str]
    was: bytes  # what the learner had


def main() -> int:
    """Update, and say what was done. Returns 0, or 1 where it could not be done."""
    try:
        update()
    except CannotUpdate as error:
        print(f"{error}\nNothing was changed.")
        return 1
    return 0


def update():
    upstream = _upstream()
    if _git("merge-base", "--is-ancestor", upstream, "HEAD").returncode == 0:
        print("This is the newest version.")
        return
    if _git("merge-base", "--is-ancestor", "HEAD", upstream).returncode != 0:
        raise CannotUpdate(
            f"You have commits of your own that are not in {upstream}: merge them by "
            f"hand (`git merge {upstream}`)."
        )
    coming = set(_out("diff", "--name-only", "-z", "HEAD", upstream).split("\0")) - {""}
    changed = _changed()
    _refuse_other_changes(changed, coming)
    worked_in = [name for name in changed if name in coming]
    merged = [_merged(name, upstream) for name in worked_in]  # nothing written yet

    for one in merged:
        print(f"kept {books.shown(one.path)} as {_kept(one)}")
    _take(upstream, merged)
    requirements = {"requirements.txt", "requirements-teach.txt"} & coming
    verb = "is" if len(coming) == 1 else "are"
    print(f"Updated: {counted(len(coming), 'file')} {verb} new or changed.")
    for one in merged:
        print(f"{books.shown(one.path)}: the new version, with what you wrote.")
        for note in one.notes:
            print(f"    {note}")
    if merged:
        print("Reload open notebooks: File > Reload Notebook from Disk.")
    if requirements:
        print("Packages have changed: the next `python start.py` installs them.")


# --- looking --------------------------------------------------------------------------


def _upstream() -> str:
    """The branch to update from, freshly fetched."""
    if INSTALLED:
        raise CannotUpdate(
            f"pip has put the course here, and brings its newest version, too: `{PIP} "
            "--upgrade`. It leaves notebooks alone: get the new one of a lesson where "
            f"you got yours, or with `{COMMAND} reset 04`, which keeps a backup."
        )
    if not (ROOT / ".git").exists():
        raise CannotUpdate(
            "This folder was not made by `git clone` (it may be a downloaded ZIP), so "
            "there is nothing to update from. Clone the course into a new folder, and "
            "copy your notebooks from lessons/ to a safe place."
        )
    if _git("rev-parse", "--verify", "HEAD").returncode != 0:
        raise CannotUpdate("git does not find a version here (`git status` says why).")
    if not _out("remote").strip():
        raise CannotUpdate(
            "This clone has no remote to update from. `git remote add origin ADDRESS` "
            "gives it one."
        )
    if _git("symbolic-ref", "-q", "HEAD").returncode != 0:
        raise CannotUpdate(
            "You are on no branch (`git status` says where): `git switch main` first."
        )
    named = _git("rev-parse", "--abbrev-ref", "@{upstream}")
    if named.returncode != 0:
        branch = _out("branch", "--show-current").strip()
        raise CannotUpdate(
            f"Your branch {branch} follows none of the remote's: `git switch main`, or "
            f"`git branch --set-upstream-to=origin/main {branch}`."
        )
    fetched = _git("fetch", "--quiet")
    if fetched.returncode != 0:
        raise CannotUpdate(
            f"The newest version could not be fetched. git says: {_last(fetched)}"
        )
    return named.stdout.strip()


def _changed() -> dict[str, str]:
    """{file: what git calls its state} of all that differs from the last commit."""
    found = _out("status", "--porcelain", "-z", "--untracked-files=no", "--no-renames")
    return {line[3:]: line[:2] for line in found.split("\0") if line}


def _refuse_other_changes(changed: dict[str, str], coming: set[str]):
    if any("U" in state or state in ("AA", "DD") for state in changed.values()):
        raise CannotUpdate(
            "A merge that was begun here is not finished: `git merge --abort`, or "
            "finish it, first."
        )
    other = [
        name
        for name in changed
        if name in coming and not (_is_lesson(name) and (ROOT / name).exists())
    ]
    if other:
        raise CannotUpdate(
            f"You have changed {', '.join(sorted(other))}, and so does the new "
            "version. Keep a copy of yours elsewhere, `git checkout HEAD -- FILE`, "
            "and update again."
        )
    untracked = _out("ls-files", "--others", "-z").split("\0")
    in_the_way = sorted(coming & set(untracked))
    if in_the_way:
        raise CannotUpdate(
            f"The new version brings {', '.join(in_the_way)}, where you have a file of "
            "your own: rename yours, and update again."
        )


def _is_lesson(name: str) -> bool:
    folder = LESSONS.relative_to(ROOT).as_posix()
    return name.startswith(f"{folder}/") and name.endswith(".ipynb")


# --- merging --------------------------------------------------------------------------


def _merged(name: str, upstream: str) -> Merged:
    path = ROOT / name
    try:
        mine, was = books.read(path), path.read_bytes()
    except (books.Unreadable, OSError) as error:
        raise CannotUpdate(
            f"{error}, so your answers in it cannot be carried over. `python start.py "
            f"reset {path.stem[:2]}` puts it back as it came, and keeps a backup."
        ) from None
    theirs = _git("show", f"{upstream}:{name}")
    if theirs.returncode != 0:  # a lesson that is no more: yours stays, as it is
        notes = ["it is no longer part of the course; yours stays"]
        return Merged(path, was.decode("utf-8", "replace"), notes, was)
    base = json.loads(_out("show", f"HEAD:{name}"))
    book, notes = merging.merge(base, mine, json.loads(theirs.stdout))
    return Merged(path, books.as_text(book), notes, was)


def _kept(one: Merged) -> str:
    try:
        kept = backups.keep(one.path)
    except OSError as error:
        raise CannotUpdate(f"No backup could be made: {error}") from None
    if kept.read_bytes() != one.was:
        raise CannotUpdate(f"{one.path.name} was saved just now: update again.")
    return books.shown(kept)


def _take(upstream: str, merged: list[Merged]):
    """Move to the new version; where that fails, all is as it was."""
    names = [one.path.relative_to(ROOT).as_posix() for one in merged]
    try:
        if names:
            _require(_git("checkout", "--quiet", "HEAD", "--", *names))
        _require(_git("merge", "--ff-only", "--quiet", upstream))
    except BaseException:
        for one in merged:
            one.path.write_bytes(one.was)
        raise
    for one in merged:
        one.path.parent.mkdir(exist_ok=True)
        books.write(one.path, one.text)


def _require(done):
    if done.returncode != 0:
        raise CannotUpdate(f"git could not do it. It says: {_last(done)}")


# --- git ------------------------------------------------------------------------------


def _git(*arguments: str) -> subprocess.CompletedProcess:
    options = {"capture_output": True, "encoding": "utf-8", "errors": "replace"}
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, check=False, **options)
    except FileNotFoundError:
        raise CannotUpdate(
            "git is not installed, and updating needs it (https://git-scm.com)."
        ) from None


def _out(*arguments: str) -> str:
    done = _git(*arguments)
    _require(done)
    return done.stdout


def _last(done) -> str:
    lines = (done.stderr or done.stdout).strip().splitlines()
    return lines[-1] if lines else f"nothing (exit code {done.returncode})"

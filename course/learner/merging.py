"""Merge a newer version of a lesson into the learner's notebook, cell by cell.

Three versions: the notebook as it came (base), as the learner has it (mine), as it
comes now (theirs). Cells are known by their ids. The result is theirs, with all that
the learner has written or added: nothing of that is ever left out.
"""

import copy
import hashlib
import json
import re

from course.saved.books import defines, source_of, tags_of


def merge(base: dict, mine: dict, theirs: dict) -> tuple[dict, list[str]]:
    """(the merged notebook, sentences on what the learner should look at)."""
    mine = _with_ids(mine, base)
    base_cells, my_cells = _by_id(base), _by_id(mine)
    merged, notes = copy.deepcopy(theirs), []
    cells = []
    for new in merged["cells"]:
        own, old = my_cells.get(new["id"]), base_cells.get(new["id"])
        if own is None:
            if old is None or _is_needed(new) or source_of(old) != source_of(new):
                cells.append(new)  # new in this version, or not to be done without
            continue
        cells += _merged_cell(old, own, new, notes)
    there = {cell["id"] for cell in cells}
    _add_own(cells, mine, base_cells, there)
    merged["cells"] = cells
    return merged, notes


def _merged_cell(old, own, new, notes) -> list[dict]:
    """The cell, or two, that come of one that is in mine and in theirs."""
    if source_of(own) == source_of(new):
        return [_own_in(own, new)]
    unedited = old is not None and source_of(own) == source_of(old)
    if unedited:
        return [new]
    if old is not None and source_of(old) == source_of(new):
        return [_own_in(own, new)]
    if "exercise" in tags_of(new):
        notes.append(
            f"the exercise {new['id'].split('-exercise-')[-1]} has changed, and you "
            "had written it already: your answer is kept, the new cell stands below "
            "it as a comment"
        )
        return [_own_in(own, new), _remark(new)]
    notes.append("a cell that you had changed has a newer version: you find both")
    return [new, _renamed(own)]


def _own_in(own: dict, new: dict) -> dict:
    """The learner's text and outputs, with the tags of the new version."""
    made = copy.deepcopy(own)
    extra = sorted(tags_of(own) - tags_of(new))
    made["metadata"] = {**own.get("metadata", {}), **new.get("metadata", {})}
    tags = [*new.get("metadata", {}).get("tags", []), *extra]
    if tags:
        made["metadata"]["tags"] = tags
    made["id"], made["cell_type"] = new["id"], own["cell_type"]
    return made


def _add_own(cells, mine, base_cells, there):
    """Put what the learner has added, or changed in cells that are no more, after the
    nearest cell before it that is still there."""
    last = None
    for own in mine["cells"]:
        name, old = own["id"], base_cells.get(own["id"])
        if name in there:
            last = name
            continue
        if old is not None and source_of(old) == source_of(own):
            continue  # ours, as it came, and no longer in the lesson
        ids = [cell["id"] for cell in cells]
        cells.insert(ids.index(last) + 1 if last in ids else 0, copy.deepcopy(own))
        there.add(name)
        last = name


def _is_needed(cell) -> bool:
    return bool(tags_of(cell) & {"setup", "exercise", "check"})


def _remark(new: dict) -> dict:
    made = _renamed(new)
    lines = ["The new version of this exercise's cell:", *source_of(new).splitlines()]
    made["source"] = [f"# {line}".rstrip() + "\n" for line in lines]
    made["metadata"] = {}
    return made


def _renamed(cell: dict) -> dict:
    """The cell under an id of its own."""
    made = copy.deepcopy(cell)
    text = json.dumps([cell["id"], source_of(cell)])
    made["id"] = f"own-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    return made


def _by_id(book: dict) -> dict[str, dict]:
    return {cell["id"]: cell for cell in book["cells"] if "id" in cell}


def _with_ids(mine: dict, base: dict) -> dict:
    """The learner's notebook with an id for each cell, no two the same: some editors
    drop ids, and a copied cell may keep that of the first."""
    made, used = copy.deepcopy(mine), set()
    free = {cell["id"]: cell for cell in base["cells"]}
    for cell in made["cells"]:
        name = cell.get("id")
        if not isinstance(name, str) or name in used:
            name = cell["id"] = ""
        if name:
            used.add(name)
            free.pop(name, None)
    for n, cell in enumerate(made["cells"]):
        if not cell["id"]:
            name = _same(cell, free) or f"own-{n}"
            while name in used:
                name += "x"
            cell["id"] = name
            used.add(name)
            free.pop(name, None)
    return made


def _same(cell: dict, free: dict) -> str:
    """The id of the cell of ours that this one is, or holds the answer of."""
    for name, ours in free.items():
        if source_of(cell).strip() == source_of(ours).strip():
            return name
    for name in free:
        exercise = re.match(r"\d\d-exercise-(\w+)$", name)
        if exercise and defines(cell, exercise[1]):
            return name
    return ""

"""`check` in a notebook, on code that is hostile by accident: it says what is the
matter, leaves the kernel as it was, and the next check tells the truth."""

import importlib
import itertools
import json
import os
import subprocess
import sys

import pytest
import torch

from course.checks import explain, limits, pristine
from course.paths import ROOT

LIVE = """
import json, linecache, sys, torch
from course import check
from course.checks import plugin
from course.checks.checking import NotPassed
plugin.SECONDS = 1.0

def told(answer, file):
    names = {"torch": torch}
    linecache.cache[file] = len(answer), None, answer.splitlines(True), file
    exec(compile(answer, file, "exec"), names)
    try:
        exec("from course import check\\ncheck(top_k_filter)", names)
        return print("PASSED")
    except NotPassed as problem:
        print(problem)
        assert problem._render_traceback_() == str(problem).splitlines()

right, *answers = json.loads(sys.stdin.read())
for n, answer in enumerate([right, *answers]):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    told(answer, f"cell {n}")
    print("THEN")
    assert torch.equal(torch.get_rng_state(), before), "the learner's seed was changed"
    told(right, "right")
    if n == 0:  # what takes seconds to import, and no check of an answer needs
        assert not {"torch._dynamo", "rfc3987_syntax"} & set(sys.modules)
    print("-----")
"""

RIGHT = """def top_k_filter(logits, top_k):
    if top_k < 0:
        raise ValueError(top_k)
    k = min(top_k or logits.shape[-1], logits.shape[-1])
    lowest = logits.sort(dim=-1, descending=True).values[:, k - 1, None]
    return torch.where(logits < lowest, -torch.inf, logits)
"""
WRONG = "def top_k_filter(logits, top_k):\n    "
SAYS = {
    RIGHT: ["✓ the case worked by hand", "✓ agrees with transformers", "PASSED"],
    RIGHT.replace("logits < lowest", "logits <= lowest"): ["✗ the case worked by hand"],
    WRONG + 'raise NotImplementedError("x")': ["… top_k_filter is not written yet"],
    WRONG + "pass": [
        "returned None. Is a `return` missing?",
        "and, for the same reason:",
    ],
    WRONG + "while True: pass": ["still running after 1 s", "while True: pass"],
    WRONG + "try:\n        while True: pass\n    except:\n        raise": ["still run"],
    WRONG + "return top_k_filter(logits, top_k)": ["calls itself without an end"],
    WRONG + "import sys; sys.exit(3)": ["calls exit()"],
    WRONG + "input('?')": ["input() cannot be answered"],
    WRONG + "print('a\\n' * 10**6)\n    return logits": ["is not shown", "✗"],
    WRONG + "torch.set_default_dtype(torch.float64)\n    return 1": ["should return a"],
    WRONG + "class E(Exception):\n        def __str__(self): 1 / 0\n    raise E()": [
        "its message cannot be shown"
    ],
    WRONG + "assert top_k == 77": ["AssertionError", "assert top_k == 77"],
    "top_k_filter = 5": ["'int' object is not callable"],
    "top_k_filter = lambda logits, top_k: logits": ["✗ the case worked by hand"],
    "min = 3\n" + RIGHT: ["`min` hides Python's own: `del min`"],
    WRONG + "return [0] * 10**13": ["asks for more memory than there is"],
    WRONG + "return torch.empty(10**14)": ["asks for more memory than there is"],
    WRONG + "class E(BaseException): pass\n    raise E('own')": ["E: own"],
    WRONG + "class A:\n        def __repr__(self): 1 / 0\n    return A()": [
        "should return a Tensor, not a A"
    ],
    WRONG + "print('a' * 10**7)\n    return logits": ["is not shown", "✗"],
    WRONG + "import sys; sys.stdout.close(); sys.stdout = None": ["returned None"],
    WRONG + "import os; os.chdir('/'); os.environ.clear()": ["returned None"],
    WRONG + "import warnings; warnings.simplefilter('error')": ["returned None"],
    WRONG + "torch.manual_seed(0); torch.set_num_threads(7)": ["returned None"],
    WRONG + "torch.set_grad_enabled(False)": ["returned None"],
    WRONG + "torch.set_default_device('meta')\n    return logits": ["✗"],
    WRONG + "torch.topk = torch.equal = lambda *a, **k: True": ["returned None"],
    WRONG + "torch.Tensor.topk = torch.Tensor.__eq__ = None": ["returned None"],
    WRONG + "import builtins; builtins.min = builtins.sum = max": ["returned None"],
    "torch.set_default_dtype(torch.float64)\n" + RIGHT: ["PASSED"],
    "torch.set_grad_enabled(False)\n" + RIGHT: ["PASSED"],
    "torch.set_default_device('meta')\n" + RIGHT: ["PASSED"],
    "torch.Tensor.topk = torch.topk = lambda *a, **k: 1 / 0\n" + RIGHT: [
        "(torch.topk had been replaced in this notebook; it is put back now.)",
        "(Tensor.topk had been replaced",
        "PASSED",
    ],
}


@pytest.fixture(scope="module")
def outputs():
    """answer -> (what check said, what it then said of a right one); from each of two
    kernels that ran at the same time."""
    kernels = [
        subprocess.Popen(
            [sys.executable, "-c", LIVE],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        )
        for _ in range(2)
    ]
    for kernel in kernels:
        kernel.stdin.write(json.dumps(list(SAYS)))
        kernel.stdin.close()
    made = []
    for kernel in kernels:
        printed, problem = kernel.stdout.read(), kernel.stderr.read()
        assert kernel.wait() == 0, problem
        parts = [x.split("THEN\n") for x in printed.split("-----\n")[:-1]]
        made.append(dict(zip(SAYS, parts, strict=True)))
    return made


@pytest.mark.parametrize("answer", SAYS)
def test_check_says_what_is_the_matter(outputs, answer):
    for output, _ in (kernel[answer] for kernel in outputs):
        for phrase in SAYS[answer]:
            assert phrase in " ".join(output.split()), output
        assert ("PASSED" in output) == ("PASSED" in SAYS[answer])
        assert len(output) < 40_000, "all that was printed is shown"


@pytest.mark.parametrize("answer", SAYS)
def test_the_next_check_in_the_same_kernel_tells_the_truth(outputs, answer):
    for kernel in outputs:
        assert kernel[answer][1] == kernel[RIGHT][1], kernel[answer][1]
        assert kernel[answer][1].endswith("PASSED\n")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda: torch.manual_seed(1),
        lambda: torch.set_default_dtype(torch.float16),
        lambda: torch.set_default_device("meta"),
        lambda: torch.set_grad_enabled(False),
        lambda: torch.use_deterministic_algorithms(True),
        lambda: os.chdir(os.sep),
        lambda: os.environ.update(OMP_NUM_THREADS="77"),
        lambda: sys.setrecursionlimit(7777),
        lambda: setattr(torch, "softmax", None),
        lambda: setattr(torch.Tensor, "softmax", None),
        lambda: setattr(torch.nn.functional, "softmax", None),
    ],
)
def test_what_code_sets_for_the_whole_program_is_put_back(spoil):
    def state():
        return [
            *(get() for get, _ in pristine._STATES[3:]),
            torch.get_rng_state().tolist(),
            (torch.softmax, torch.Tensor.softmax, torch.nn.functional.softmax),
        ]

    before = state()
    with limits.contained(60):  # torch imports its compiler for one of them
        spoil()
    assert state() == before
    assert pristine.mend() == []


def test_what_torch_wraps_itself_is_left_alone():
    importlib.import_module("torch._dynamo")  # wraps torch.manual_seed
    assert pristine.mend() == []


def test_the_time_limit_stops_python_code_on_any_thread():
    for limit in (limits._by_thread, limits.time_limit):
        with pytest.raises(limits.TimeLimit) as caught, limit(0.2):
            for _ in itertools.count():
                pass
        assert caught.value.seconds == 0.2
        with limit(5):
            pass  # nothing is left behind to ring later


def test_a_stub_of_another_exercise_is_named():
    def helper():
        raise NotImplementedError

    try:
        helper()
    except NotImplementedError as error:
        result = explain.verdict("sample_top_k", error)
    assert result.state == explain.TO_DO
    assert "helper is not written yet, and sample_top_k calls it" in result.text


def test_what_torch_has_not_implemented_is_wrong_and_not_to_do():
    try:
        torch.tensor([True, False]).mean()
    except (NotImplementedError, RuntimeError) as error:
        result = explain.verdict("kept_mass", error)
    assert result.state == explain.WRONG
    try:
        torch.tensor([1.0], device="meta").item()
    except (NotImplementedError, RuntimeError) as error:
        result = explain.verdict("kept_mass", error)
    assert result.state == explain.WRONG

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

from course.checks import checking, expect, explain, limits, plugin, pristine
from course.paths import ROOT, SOLUTIONS

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


PROFILED = """
import sys, time
from course.checks import limits

def ends(): pass
def runs_on():
    while True: pass
def ends_as_it_rings(): time.sleep(0.05)  # in C, so that none is raised before

def profiled():
    calls = []
    sys.setprofile(lambda frame, event, argument: calls.append(event))
    ends()
    sys.setprofile(None)
    return calls.count("call")

for body in (ends, runs_on, ends_as_it_rings):
    for seconds in (0.02, 0.05):
        try:
            with limits._by_thread(seconds):
                body()
        except limits.TimeLimit:
            pass
        print(profiled())
"""


def test_a_profiler_can_be_set_after_a_time_limit():
    """Python 3.11 went round for ever where an exception was taken back."""
    done = subprocess.run(
        [sys.executable, "-c", PROFILED],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.split() == ["1"] * 6, done.stderr


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


# --- the call that ended in an error --------------------------------------------------


def told_of(answer, call):
    try:
        call()
    except Exception as error:
        return explain.verdict("f", error, answer).text.splitlines()[0]


def test_an_error_is_shown_with_the_call_that_ended_in_it():
    def f(logits, top_k, *, model=None, **options):
        return {}[top_k]

    row = torch.tensor([[1.0, 2.5]])
    told = told_of(f, lambda: f(row, 3, model=f, seed=None))
    assert told == "f([[1, 2.5]], 3, model=model, seed=None) ended in KeyError: 3"
    told = told_of(f, lambda: f(torch.ones(30, 2), "x" * 200))
    assert told.startswith("f(logits of shape (30, 2), top_k, model=None) ended in K")


def test_an_argument_that_the_code_may_have_changed_is_not_shown():
    def bound(logits, k):
        logits = logits / 2
        return {}[k]

    def filled(logits, k):
        logits[0, 0] = 9
        return {}[k]

    def in_place(logits, k):
        logits.mul_(2)
        return {}[k]

    for f in (bound, filled, in_place):
        told = told_of(f, lambda f=f: f(torch.tensor([[1.0, 2.0]]), 3))
        assert told == "f(logits, 3) ended in KeyError: 3"


def test_an_error_in_a_method_is_shown_with_the_method():
    class F:
        def __init__(self, k):
            self.k = {1: 1}[k]

        def generate(self, ids):
            return ids[self.k]

    assert told_of(F, lambda: F(2)) == "f(2) ended in KeyError: 2"
    told = told_of(F, lambda: F(1).generate([5]))
    assert told == "f.generate([5]) ended in IndexError: list index out of range"


def test_one_error_after_two_calls_is_told_once():
    told = [f"f({n}) ended in KeyError: 3" for n in (1, 2)]
    results = [
        (f"check {n}", explain.Verdict(explain.WRONG, t)) for n, t in enumerate(told)
    ]
    text, _ = explain.report(results)
    assert text.count("KeyError") == 1
    assert "for the same reason" in text


def test_a_hint_of_the_check_follows_the_error_it_is_for():
    def f(k):
        return {}[k]

    def hinted():
        with expect.hinting("0 is off.", KeyError, says="0"):
            f(0)

    assert told_of(f, hinted) == "f(0) ended in KeyError: 0. 0 is off."

    def other():
        with expect.hinting("0 is off.", KeyError, says="1"):
            f(0)

    assert told_of(f, other) == "f(0) ended in KeyError: 0"


def test_options_for_runs_of_pytest_by_hand_are_none_for_a_check(monkeypatch):
    monkeypatch.setenv("PYTEST_ADDOPTS", "--pdb --no-such-option")
    answer = plugin.loaded(SOLUTIONS / "04_top_k.ipynb").get("kept_mass")
    assert checking.state_of("kept_mass", answer) == explain.DONE
    assert os.environ["PYTEST_ADDOPTS"] == "--pdb --no-such-option"

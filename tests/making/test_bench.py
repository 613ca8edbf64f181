"""`python start.py bench`: its table, its jobs, its processes. Nothing is timed."""

import sys
import textwrap

import pytest

from course.making import bench
from course.making.benchmarks import (
    grading,
    lesson,
    machine,
    processes,
    prompts,
    table,
)
from course.paths import SOLUTIONS
from course.saved import books


def answer(tokens, *steps, seconds=None):
    return {
        "tokens": tokens,
        "seconds": sum(steps) if seconds is None else seconds,
        "prefill": 1.0,
        "steps": list(steps),
    }


# --- the table ------------------------------------------------------------------------


def test_speed_is_the_median_of_all_steps_and_the_spread_that_of_the_rounds():
    rounds = [answer([1, 2], 0.1, 0.1, 0.1), answer([1, 2], 0.2, 0.2, 0.5)]
    speed, low, high = table.speeds(rounds, 1)
    assert speed == pytest.approx(1 / 0.15)
    assert (low, high) == (pytest.approx(5), pytest.approx(10))
    assert table.speeds(rounds, 8)[0] == pytest.approx(8 / 0.15)


def test_the_speed_of_whole_answers_counts_the_prefill():
    rounds = [answer([1] * 10, 0.1, seconds=s) for s in (1.0, 2.0, 5.0)]
    assert table.overall(rounds) == (5.0, 2.0, 10.0)


def test_the_last_column_says_where_a_text_differs_first():
    base = [answer([5, 6, 7], 1)]
    assert table.agreement([answer([5, 6, 7], 1)], base) == "3/3"
    worst = [answer([5, 6, 7], 1), answer([5, 9, 7], 1)]
    assert table.agreement(worst, base) == "1/3"
    assert table.agreement([answer([5, 6], 1)], base) == "2/3"


RESULTS = {
    ("decode", "generate", 1): [answer([5, 6], 0.04)],
    ("decode", "4-bit", 1): [answer([5, 6], 0.004)],
    ("decode", "llama-q4", 1): [answer([5, 9], 0.008)],
    ("decode", "generate", 8): [answer([5, 6], 0.08)],
    ("decode", "4-bit", 8): [answer([5, 6], 0.01)],
    ("text", "open", "generate", False): [answer([5, 6], seconds=2.0)],
    ("text", "open", "4-bit", True): [answer([5, 6], seconds=0.1)],
    "read": [50e9, 40e9, 60e9],
    "load": [0.5],
}


def rows(said):
    """{(the first two columns): the others}"""
    return {
        (line[: table.WHAT].strip(), line[table.WHAT :].split()[0]): line[
            table.WHAT :
        ].split()[1:]
        for line in said.splitlines()
        if len(line) > table.WHAT + 20
    }


def test_the_table_gives_ratios_of_the_same_run_and_the_share_of_the_limit(capsys):
    table.print_read(RESULTS)
    table.print_decode(RESULTS, 2)
    said = capsys.readouterr().out
    found = rows(said)
    assert "read limit 50.0 GB/s (rounds 40.0 to 60.0)" in said
    assert found[table.NAMES["generate"], "1"][2] == "1.00"
    # 96.4 MB of 4-bit and 8-bit blocks in 4 ms are 24.1 GB/s
    assert found[table.NAMES["4-bit"], "1"] == [
        *("250.0", "250.0-250.0", "10.00", "48%", "2/2")
    ]
    assert found[table.NAMES["llama-q4"], "1"][-1] == "1/2"
    # 8 tokens in 10 ms against 8 in 80 ms. Memory is not what limits eight: no share
    eight = found[table.NAMES["4-bit"], "8"]
    assert eight == ["800.0", "800.0-800.0", "8.00", "2/2"]
    assert f"{table.NAMES['4-bit']}: 2.00 times as fast as llama.cpp" in said


def test_whole_answers_have_rows_of_their_own(capsys):
    table.print_texts(RESULTS, 2)
    found = rows(capsys.readouterr().out)
    assert found[table.NAMES["generate"], "open"][2] == "1.00"
    lookup = next(v for k, v in found.items() if "our kernels" in k[0])
    assert lookup == ["20.0", "20.0-20.0", "20.00", "2/2"]


def test_without_whole_answers_there_is_no_table_of_them(capsys):
    table.print_texts({"read": [1.0]}, 2)
    assert capsys.readouterr().out == ""


def test_the_bytes_of_a_token_are_those_of_the_matrices():
    # 30 layers of q, o 576 x 576, k, v 192 x 576, gate, up, down 1536 x 576
    assert 30 * 576 * (2 * 576 + 2 * 192 + 3 * 1536) == 106_168_320
    assert table.bytes_read("f32") == 4 * (106_168_320 + 49_152 * 576)
    q4 = 106_168_320 * 20 / 32 + 49_152 * 576 * 34 / 32
    assert table.bytes_read("4-bit") == table.bytes_read("llama-q4") == q4


# --- what is measured -----------------------------------------------------------------


class Words:
    """A tokenizer that counts: enough for the shape of the jobs."""

    def __call__(self, text):
        return {"input_ids": list(range(len(text.split())))}

    def apply_chat_template(self, messages, **options):
        return self(messages[0]["content"])


@pytest.fixture
def no_tokenizer(monkeypatch):
    monkeypatch.setattr(prompts, "tokenizer", Words)


def test_every_row_of_the_table_has_a_job(no_tokenizer):
    options = bench.parsed([])
    found = bench.jobs(["generate", "f32", "by-hand", "4-bit"], options)
    assert [k for k in found if k[0] == "decode"] == [
        *(("decode", n, 1) for n in ("generate", "f32", "by-hand", "4-bit")),
        *(("decode", n, b) for b in (8, 32) for n in ("generate", "4-bit")),
    ]
    texts = [k for k in found if k[0] == "text"]
    assert len(texts) == 16  # four kinds; two variants; with and without lookup
    for key, job in found.items():
        if key[0] == "decode":
            assert {len(ids) for ids in job["prompts"]} == {prompts.LENGTH}
            assert len(job["prompts"]) == key[2]
        else:
            assert job["lookup"] is key[3]


def test_one_variant_alone_is_compared_with_generate_in_the_same_rows(no_tokenizer):
    found = bench.jobs(["generate", "f32"], bench.parsed([]))
    assert {key[0] for key in found} == {"decode"}
    for key in found:
        assert ("decode", "generate", key[2]) in found


def test_sixteen_texts_prove_the_same_tokens():
    assert len(prompts.sixteen(Words())) == 16
    assert len(set(map(len, prompts.sixteen(Words())))) > 8  # they differ


class Recorder:
    def __init__(self):
        self.asked = []

    def ask(self, name, job):
        self.asked.append((name, job))
        return 1e9 if name == "read" else answer([1, 2], 0.5)


def test_rounds_are_in_turns_and_whole_answers_come_every_other_time():
    workers, jobs = (
        Recorder(),
        {
            ("decode", "generate", 1): "a",
            ("decode", "4-bit", 1): "b",
            ("text", "open", "4-bit", True): "c",
        },
    )
    results = bench.measure(workers, jobs, 4)
    order = "".join(job or "|" for _, job in workers.asked)
    assert order == "|abc|ba|cba|ab"
    assert len(results["read"]) == len(results["load"]) == 4
    assert len(results["text", "open", "4-bit", True]) == 2
    assert len(results["decode", "4-bit", 1]) == 4


def test_the_course_knows_the_command(capsys):
    from course.__main__ import main

    with pytest.raises(SystemExit) as stopped:
        main(["bench", "--help"])
    assert stopped.value.code == 0
    assert "python start.py bench --quick" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [["--rounds", "0"], ["--new", "1"], ["--only", "x"]])
def test_an_option_that_makes_no_sense_is_refused(wrong, capsys):
    with pytest.raises(SystemExit) as error:
        bench.main(wrong)
    assert error.value.code == 2
    assert "usage: python start.py bench" in capsys.readouterr().err


def test_quick_is_shorter():
    quick, whole = bench.parsed(["--quick"]), bench.parsed([])
    assert quick.rounds * quick.new < whole.rounds * whole.new / 5


def test_texts_that_differ_are_an_error_unless_they_are_llamas(
    no_tokenizer, monkeypatch, capsys
):
    class Fake:
        def __init__(self, *_):
            pass

        __enter__ = lambda self: self  # noqa: E731
        __exit__ = lambda self, *_: None  # noqa: E731

        def ask(self, name, job):
            wrong = name == "llama-q4" or job["lookup"] and broken
            return answer([1, 9 if wrong else 2], 1.0)

    monkeypatch.setattr(bench, "Workers", Fake)
    options = bench.parsed(["--new", "2"])
    names = ["generate", "4-bit", "llama-q4"]
    broken = False
    assert bench.same(names, options) == 0
    said = capsys.readouterr().out
    assert f"{table.NAMES['4-bit']:46} 16 of 16 texts of 2 tokens equal" in said
    assert f"{table.NAMES['llama-q4']:46} 0 of 16" in said
    broken = True
    assert bench.same(names, options) == 1
    assert "first difference of each: [1, 1," in capsys.readouterr().out


# --- processes ------------------------------------------------------------------------


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """A module for `Workers` that echoes what it is asked."""
    (tmp_path / "echo_worker.py").write_text(
        textwrap.dedent("""
        import os, sys
        from course.making.benchmarks.processes import answer

        def make():
            print("noise of a library")
            if sys.argv[1] == "broken":
                sys.exit("no such thing")
            def run(job):
                print("more noise")
                if job == "die":
                    os._exit(3)
                return [sys.argv[1], os.environ["OMP_NUM_THREADS"], job]
            return run

        answer(make)
        """)
    )
    path = [str(tmp_path), str(SOLUTIONS.parent)]
    monkeypatch.setenv(
        "PYTHONPATH", ";".join(path) if sys.platform == "win32" else ":".join(path)
    )
    return "echo_worker"


def test_each_variant_answers_from_a_process_of_its_own(worker):
    with processes.Workers(["a", "b"], 3, worker) as workers:
        assert workers.ask("b", [1]) == ["b", "3", [1]]
        assert workers.ask("a", None) == ["a", "3", None]
        running = list(workers.processes.values())
    assert all(process.poll() is not None for process in running)


def test_a_process_that_ends_is_named(worker):
    with processes.Workers(["a"], 1, worker) as workers:
        for _ in range(2):
            with pytest.raises(processes.Failed, match="the process for a ended"):
                workers.ask("a", "die")
    with pytest.raises(processes.Failed, match="the process for broken ended"):
        processes.Workers(["a", "broken"], 1, worker)


def test_a_failed_process_is_the_commands_failure(monkeypatch, no_tokenizer, capsys):
    def fail(*_):
        raise processes.Failed("the process for read ended")

    monkeypatch.setattr(bench, "Workers", fail)
    assert bench.main(["--quick"]) == 1
    assert "the process for read ended" in capsys.readouterr().err


# --- lesson 14 ------------------------------------------------------------------------


def test_what_is_timed_of_the_lesson_are_its_cells_with_definitions():
    book = books.read(SOLUTIONS / f"{lesson.LESSON}.ipynb")
    tagged = [c for c in book["cells"] if "kernels" in books.tags_of(c)]
    assert len(tagged) >= 6
    for cell in tagged:
        source = books.source_of(cell)
        for word in ("print(", "fastest(", "= load(", "plt.", "read_gguf("):
            assert word not in source, source
    space = lesson.definitions()
    assert callable(space["step_by_hand"])
    assert callable(space["packed"])


def test_the_picture_of_the_readme_is_that_of_the_lesson():
    advice = "run `python start.py bench --picture`"
    assert lesson.PICTURE.read_bytes() == lesson.figure(), advice
    text = (SOLUTIONS.parent / "README.md").read_text(encoding="utf-8")
    assert "](course/speed.png)" in text


# --- the machine ----------------------------------------------------------------------


def test_the_machine_is_named_with_its_threads_and_versions():
    said = machine.described(3)
    assert "3 threads" in said
    assert f"{machine.processors()} processors" in said
    assert "torch " in said
    assert "numba " in said


def test_the_class_that_is_graded_has_no_two_equal_notebooks():
    """Else one of them would be graded for both."""
    made = [grading.notebook("04_top_k", n) for n in range(30)]
    assert len(set(made)) == 30
    stub = "raise NotImplementedError"
    stubs = [text.count(stub) for text in made[:10]]
    assert stubs[:6] == [0] * 6
    assert min(stubs[6:8]) >= 3
    assert "return None" in made[8]

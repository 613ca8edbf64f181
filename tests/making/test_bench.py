"""The table of `python start.py bench`. Cases worked by hand; nothing is timed."""

import argparse

import pytest

from course.making import bench


def answer(tokens, *steps):
    return {"tokens": tokens, "prefill": 1.0, "steps": list(steps)}


def test_speed_is_the_median_of_all_steps_and_the_spread_that_of_the_rounds():
    rounds = [answer([1, 2], 0.1, 0.1, 0.1), answer([1, 2], 0.2, 0.2, 0.5)]
    speed, low, high = bench.speeds(rounds, 1)
    assert speed == pytest.approx(1 / 0.15)
    assert (low, high) == (pytest.approx(5), pytest.approx(10))
    assert bench.speeds(rounds, 8)[0] == pytest.approx(8 / 0.15)


def test_the_last_column_says_where_a_text_differs_first():
    base = [answer([5, 6, 7], 1)]
    assert bench.agreement([answer([5, 6, 7], 1)], base) == "3/3"
    worst = [answer([5, 6, 7], 1), answer([5, 9, 7], 1)]
    assert bench.agreement(worst, base) == "1/3"


def test_the_table_gives_ratios_of_the_same_run_and_the_share_of_the_limit(capsys):
    results = {
        ("generate", 1): [answer([5, 6], 0.04)],
        ("4-bit", 1): [answer([5, 6], 0.004)],
        ("llama-q4", 1): [answer([5, 9], 0.008)],
        ("generate", 8): [answer([5, 6], 0.08)],
        ("4-bit", 8): [answer([5, 6], 0.01)],
        "read": [50e9],
        "load": [0.5],
    }
    bench.report(results, argparse.Namespace(new=2, rounds=1))
    said = capsys.readouterr().out
    rows = {line[:42].strip(): line[42:].split() for line in said.splitlines()[4:]}
    assert rows["model.generate, float32"][3] == "1.00"
    # 96.4 MB of 4-bit and 8-bit blocks in 4 ms are 24.1 GB/s
    four = rows["our kernels, 4-bit blocks"]
    assert "llama.cpp" in said
    assert "our 4-bit kernels are 2.00 times as fast as llama.cpp" in said
    assert "10.00      48%  2/2" in said
    assert rows["llama.cpp, the same 4-bit file"][-1] == "1/2"
    assert four[0] == "8"  # the last row of that name: 8 at once
    assert four[3] == "8.00"


@pytest.mark.parametrize("wrong", [["--rounds", "0"], ["--new", "1"], ["--only", "x"]])
def test_an_option_that_makes_no_sense_is_refused(wrong, capsys):
    with pytest.raises(SystemExit) as error:
        bench.main(wrong)
    assert error.value.code == 2
    assert "usage: python start.py bench" in capsys.readouterr().err


def test_the_bytes_of_a_token_are_those_of_the_matrices():
    # 30 layers of q, o 576 x 576, k, v 192 x 576, gate, up, down 1536 x 576
    assert 30 * 576 * (2 * 576 + 2 * 192 + 3 * 1536) == 106_168_320
    assert bench.bytes_read("f32") == 4 * (106_168_320 + 49_152 * 576)
    assert bench.bytes_read("4-bit") == 106_168_320 * 20 / 32 + 49_152 * 576 * 34 / 32

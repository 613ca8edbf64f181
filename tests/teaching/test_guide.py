"""The teacher's guide: complete, and what its exam questions claim is so."""

import math
import re

import pytest
import torch

from course.making.answers import answers, reference
from course.paths import ROOT, lesson_names

GUIDE = ROOT / "course" / "teaching" / "guide"
PARTS = ("**Goals.**", "**They must know**", "## Plan", "**What to cut**")
PARTS += ("## Mistakes", "## Questions for the room", "## Exam question", "*Solution.*")


@pytest.mark.parametrize("lesson", lesson_names())
def test_each_lesson_has_a_page_with_all_parts(lesson):
    text = (GUIDE / f"{lesson}.md").read_text(encoding="utf-8")
    missing = [part for part in PARTS if part not in text]
    assert not missing
    assert len(re.findall(r"^- \*.*", text, re.MULTILINE)) >= 3, "questions"
    index = (GUIDE / "index.md").read_text(encoding="utf-8")
    assert f"({lesson}.md)" in index


@pytest.mark.parametrize("lesson", lesson_names())
def test_a_quoted_sentence_is_one_that_a_check_really_says(lesson):
    text = (GUIDE / f"{lesson}.md").read_text(encoding="utf-8")
    table = text.split("## Mistakes")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (?!---|mistake)(.*) \| `([^`]+)` \|$", table, re.MULTILINE)
    assert len(rows) >= 5
    known = [a.says for a in answers("wrong_answers", lesson)]
    for _, quoted in rows:
        assert any(quoted in says or says in quoted for says in known), quoted


def test_one_threshold_for_a_batch_keeps_both_tokens_of_the_other_row():
    logits, k = torch.tensor([[1.0, 3.0], [10.0, 12.0]]), 1
    logits[logits < logits.topk(k).values.min()] = float("-inf")
    assert logits.tolist() == [[-math.inf, 3.0], [10.0, 12.0]]
    for k in (0, 3):
        with pytest.raises((RuntimeError, IndexError)):
            logits.topk(k).values.min()


def test_a_temperature_after_the_softmax_does_nothing():
    logits = torch.tensor([[0.0, math.log(3)]]).expand(20_000, 2)
    shares = []
    for weights in (logits.softmax(-1) / 0.5, (logits / 0.5).softmax(-1)):
        torch.manual_seed(0)
        shares.append(torch.multinomial(weights, 1).double().mean().item())
    assert shares == [pytest.approx(0.75, abs=0.02), pytest.approx(0.9, abs=0.02)]


def test_of_two_right_ones_among_ten_five_draws_miss_both_in_56_of_252():
    pass_at_k, stop = reference("pass_at_k"), reference("early_stop_vote")
    assert pass_at_k(10, 2, 1) == pytest.approx(0.2)
    assert pass_at_k(10, 2, 5) == pytest.approx(0.778, abs=0.0005)
    biased = 1 - (1 - 2 / 10) ** 5
    assert biased == pytest.approx(0.672, abs=0.0005)
    assert stop(iter("aaabaxx"), 7) == ("a", 5)
    assert stop(iter([*"aaab", None, *"bb"]), 7) == (None, 7)


def test_a_mask_turns_the_two_ways_to_write_ab_round():
    """The exam question of lesson 12."""
    a, b, ab = 0.5, 0.3, 0.2
    assert a / (a + ab) == pytest.approx(0.714, abs=1e-3)
    assert a * b / (a * b + ab) == pytest.approx(0.43, abs=1e-2)


def test_four_pairs_counted_five_times_make_a_z_of_3_out_of_1():
    """The exam question of lesson 16, and a question for the room."""
    z = reference("z_score")
    assert z(44, 64, 0.5) == pytest.approx(3)
    assert z(44 - 4 * 4, 64 - 4 * 4, 0.5) == pytest.approx(1.15, abs=0.01)
    accused = 0.8 * 0.002, 0.001 * 0.998
    assert accused[0] / sum(accused) == pytest.approx(0.62, abs=0.005)
    innocent = 0.99**30
    assert 1 - innocent == pytest.approx(0.26, abs=0.005)


def test_guidance_turns_two_tokens_round_and_lifts_an_impossible_third():
    """The exam question of lesson 11."""
    guide, context_aware = reference("guide"), reference("context_aware")
    cond, uncond = torch.tensor([[0.6, 0.4]]).log(), torch.tensor([[0.8, 0.2]]).log()
    for scores in (guide(cond, uncond, 2), context_aware(cond, uncond, 1)):
        assert scores.softmax(-1)[0].tolist() == pytest.approx([0.36, 0.64], abs=1e-5)
    assert guide(cond, uncond, 0).softmax(-1)[0].tolist() == pytest.approx([0.8, 0.2])
    cond = torch.tensor([[0.6, 0.4, 0.001]]).log()
    uncond = torch.tensor([[0.8, 0.2, 0.000001]]).log()
    assert guide(cond, uncond, 2).argsort(descending=True)[0].tolist() == [2, 1, 0]
    assert reference("plausible")(cond, 0.1).tolist() == [[True, True, False]]

"""`doctor` reports what it finds, changes nothing, and survives what is broken."""

import socket
from pathlib import Path

import pytest

from course.learner import doctor
from course.saved import standing


@pytest.fixture
def probes(monkeypatch):
    """What the two slow probes say: healthy, unless a test changes it."""
    said = {
        doctor.TORCH: ["works, 2 threads", "none, so the CPU is used"],
        doctor.MODEL: ["/nowhere/token-by-token/model", "whole"],
    }
    monkeypatch.setattr(doctor, "_probe", said.get)
    return said


def test_a_healthy_course_is_one_block_and_code_0(course, probes, capsys):
    course.write("top_k_filter", course.RIGHT)
    standing.remember("04_top_k", "top_k_filter", course.RIGHT, passed=True)
    assert doctor.main() == 0
    out = capsys.readouterr().out
    for title in doctor.SECTIONS:
        assert f"\n{title}:" in out
    assert "torch 2." in out
    assert "GPU: none" in out
    assert "04_top_k                ✓………" in out
    assert out.endswith("Nothing is broken that lessons need.\n")
    assert str(Path.home()) not in out


def test_what_is_broken_is_said_and_the_rest_still_comes(
    course, probes, monkeypatch, capsys
):
    probes[doctor.TORCH] = ["ModuleNotFoundError: No module named 'torch'"]
    probes[doctor.MODEL] = ["ModuleNotFoundError: No module named 'torch'"]
    course.path().write_text("{", encoding="utf-8")
    monkeypatch.setattr(doctor, "PACKAGES", (*doctor.PACKAGES, "no-such-package"))
    monkeypatch.setattr(socket.socket, "bind", refuse)
    assert doctor.main() == 1
    out = capsys.readouterr().out
    for phrase in (
        "BROKEN: ModuleNotFoundError: No module named 'torch'",
        "! torch cannot be used: delete .venv",
        "MISSING: no-such-package",
        "NO server can be started on this machine: refused",
        "is not a valid notebook",
        "`python start.py reset 04` mends that",
        "03_your_own_loop        ……………",
    ):
        assert phrase in out, out


def refuse(*_):
    raise OSError("refused")


def test_a_part_that_fails_in_a_way_nobody_thought_of_costs_its_line_alone(
    course, probes, monkeypatch, capsys
):
    monkeypatch.setattr(doctor, "_free", lambda path: 1 / 0)
    monkeypatch.setitem(doctor.SECTIONS, "disk", doctor._disk)
    assert doctor.main() == 1
    out = capsys.readouterr().out
    assert "disk:       cannot be told (ZeroDivisionError" in out
    assert "\nlessons:" in out


def test_a_probe_that_dies_gives_its_last_word():
    assert doctor._probe("print('a'); print('b')") == ["a", "b"]
    assert doctor._probe("import no_such_torch") == [
        "ModuleNotFoundError: No module named 'no_such_torch'"
    ]
    assert doctor._probe("import os; os._exit(3)") == ["it ended with 3"]


def test_secrets_are_not_in_the_report(probes, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:secret@example.org")
    told = doctor._settings([])
    assert "secret" not in told
    assert "OPENAI_API_KEY is set" in told
    assert "HTTPS_PROXY is set" in told

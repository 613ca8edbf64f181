"""What lesson 18 does with Ray beyond its exercises: a cluster that is joined by its
address, and requests that are sent again. `python start.py scale` installs Ray."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from course.checks import notebook, plugin
from course.kit import scale
from course.kit.flaky import Flaky
from course.paths import ROOT, SOLUTIONS
from tiny_models import random_llama
from tiny_models.server import serve
from tiny_models.toy_tokenizer import toy_tokenizer

LESSON = SOLUTIONS / "18_beyond_one_machine.ipynb"


def tiny():
    tokenizer = toy_tokenizer()
    return random_llama(vocab_size=len(tokenizer)), tokenizer


# --- these need no Ray ----------------------------------------------------------------


def test_the_reference_was_built_where_ray_is_installed():
    cells = notebook.read(LESSON).cells
    texts = [str(output) for cell in cells for output in cell.get("outputs", [])]
    told = [text for text in texts if scale.MISSING in text]
    assert not told, "build lesson 18 after `python start.py scale`"
    assert any("the same bytes as one process? True" in text for text in texts)


def test_without_ray_a_sentence_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setattr(scale.importlib.util, "find_spec", lambda _: None)
    assert not scale.has_ray()
    assert capsys.readouterr().out == f"{scale.MISSING}\n"
    assert "python start.py scale" in scale.MISSING
    with pytest.raises(ModuleNotFoundError, match="python start.py scale"):
        scale.start()


def test_a_folder_named_ray_is_not_ray(tmp_path):
    (tmp_path / "ray").mkdir()
    told = "from course.kit import scale; print(scale.is_installed())"
    done = subprocess.run(
        [sys.executable, "-S", "-c", told],  # without what is installed
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}"},
    )
    assert done.stdout == "False\n"


def test_the_door_fails_at_the_first_of_every_few_and_passes_on_the_rest():
    import httpx

    with serve(*tiny(), name="tiny") as server, Flaky(server.base_url, 3) as door:
        url = door.base_url + "/chat/completions"
        question = [{"role": "user", "content": "a"}]
        asked = {"model": "tiny", "messages": question, "max_tokens": 2}
        got = [httpx.post(url, json=asked) for _ in range(5)]
        wrong = httpx.post(url, json=asked | {"max_tokens": -1})
    assert [one.status_code for one in got] == [503, 200, 200, 503, 200]
    assert (door.asked, door.failed) == (6, 2)
    assert got[1].json()["choices"][0]["message"]["role"] == "assistant"
    assert wrong.status_code == 400


# --- these do -------------------------------------------------------------------------


@pytest.fixture
def ray():
    reason = "Ray is not installed: `python start.py scale` adds it"
    pytest.importorskip("ray", reason=reason)
    return scale.start()  # it stays for the next test, and ends with the program


def test_failed_requests_are_sent_again_until_each_row_has_its_answer(ray):
    from ray.data.llm import HttpRequestProcessorConfig, build_processor

    def as_request(row):
        messages = [{"role": "user", "content": row["prompt"]}]
        payload = {"model": "tiny", "messages": messages, "max_tokens": 3, "seed": 1}
        return {"key": row["key"], "payload": payload}

    def as_row(row):
        choice = row["http_response"]["choices"][0]
        return {"key": row["key"], "text": choice["message"]["content"]}

    with serve(*tiny(), name="tiny") as server, Flaky(server.base_url, 3) as door:
        processor = build_processor(
            HttpRequestProcessorConfig(
                url=door.base_url + "/chat/completions",
                batch_size=4,
                concurrency=1,
                max_retries=5,
                base_retry_wait_time_in_s=0.1,
            ),
            preprocess=as_request,
            postprocess=as_row,
        )
        rows = [{"key": f"q{n}", "prompt": f"row {n}"} for n in range(9)]
        got = processor(ray.data.from_items(rows)).take_all()
    assert door.failed >= 3
    assert door.asked == door.failed + 9
    assert sorted(row["key"] for row in got) == [f"q{n}" for n in range(9)]


DRIVER = """
import sys
from numba import cloudpickle
function, arguments, options = cloudpickle.load(open(sys.argv[1], "rb"))
function(*arguments, **options)
"""


def test_an_address_with_which_ray_data_fails_is_an_error(ray):
    with pytest.raises(ValueError, match="HOST:6379"):
        scale.start("ray://127.0.0.1:10001")


def test_another_program_joins_a_cluster_by_its_address(ray, tmp_path):
    from numba import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    decode_file = plugin.loaded(LESSON).get("decode_file")
    source, target, work = (tmp_path / x for x in ("in.jsonl", "out.jsonl", "work"))
    rows = [{"key": n, "prompt": f"row {n}"} for n in range(5)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    address = ray.get_runtime_context().gcs_address
    nodes = len(ray.nodes())
    options = {"loader": tiny, "max_new_tokens": 3, "workers": 2, "address": address}
    work.write_bytes(cloudpickle.dumps((decode_file, (source, target), options)))
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(work)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    here = Path(tmp_path / "here.jsonl")
    decode_file(source, here, workers=0, loader=tiny, max_new_tokens=3)
    assert target.read_bytes() == here.read_bytes()
    assert len(ray.nodes()) == nodes


def slow():
    model, tokenizer = tiny()
    model.register_forward_pre_hook(lambda *_: time.sleep(0.3))
    return model, tokenizer


def test_a_run_goes_on_after_its_driver_was_killed(ray, tmp_path):
    from numba import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    decode_file = plugin.loaded(LESSON).get("decode_file")
    source, target, work = (tmp_path / x for x in ("in.jsonl", "out.jsonl", "work"))
    part = tmp_path / "out.jsonl.part"
    rows = [{"key": f"q{n}", "prompt": f"row {n}"} for n in range(24)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"loader": slow, "max_new_tokens": 6, "workers": 1}
    options["address"] = ray.get_runtime_context().gcs_address
    work.write_bytes(cloudpickle.dumps((decode_file, (source, target), options)))
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(work)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    while driver.poll() is None and not (part.exists() and part.stat().st_size):
        time.sleep(0.05)
    ended = driver.poll()
    driver.kill()
    told = driver.communicate()[1][-2000:]
    assert ended is None, told
    assert not target.exists()
    lines = part.read_text("utf-8").splitlines(keepends=True)
    assert 0 < len(lines) < len(rows)
    # So that an answer from the part is known from one that is made again.
    kept = json.loads(lines[0])
    lines[0] = json.dumps({**kept, "text": "kept"}) + "\n"
    part.write_text("".join(lines), "utf-8")
    decode_file(source, target, workers=2, loader=tiny, max_new_tokens=6)
    found = [json.loads(line) for line in target.read_text("utf-8").splitlines()]
    assert [row["key"] for row in found] == [row["key"] for row in rows]
    assert [row["key"] for row in found if row["text"] == "kept"] == [kept["key"]]
    alone = tmp_path / "alone.jsonl"
    decode_file(source, alone, workers=0, loader=tiny, max_new_tokens=6)
    wanted = [json.loads(line) for line in alone.read_text("utf-8").splitlines()]
    assert [row["ids"] for row in found] == [row["ids"] for row in wanted]

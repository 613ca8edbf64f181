"""The API server against a harness that nobody here wrote: Inspect (`inspect_ai`).

The same evaluation runs twice in the same harness: on the course's model through our
HTTP server (Inspect's `openai-api` provider), and on the same weights loaded locally
(its `hf` provider). Answers, scores and log-probabilities should be the same. For
maintainers, in the environment that run.py describes:

    HF_HUB_OFFLINE=1 ../clients/bin/python tests/models/clients/inspect_compare.py

Prints for each way the accuracy, and the largest difference between log-probabilities.
Ends with 1 if answers differ or a log-probability differs by more than 0.001.
"""

import os
import sys
import tempfile

from inspect_ai import Task, eval
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import GenerateConfig, get_model
from inspect_ai.scorer import includes
from inspect_ai.solver import generate

from tiny_models import load, serve

CAPITALS = {
    **{"France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid"},
    **{"Japan": "Tokyo", "China": "Beijing", "Egypt": "Cairo", "Greece": "Athens"},
    **{"Russia": "Moscow", "Peru": "Lima", "Cuba": "Havana", "Austria": "Vienna"},
    **{"Kenya": "Nairobi", "Norway": "Oslo", "Poland": "Warsaw", "India": "Delhi"},
    **{"Ireland": "Dublin", "Portugal": "Lisbon", "Sweden": "Stockholm"},
    **{"Hungary": "Budapest"},
}
SETTINGS = GenerateConfig(
    temperature=0.0, max_tokens=12, logprobs=True, top_logprobs=5, max_connections=4
)


def run(model, logs):
    """(accuracy, [(answer, [(log-probability, those of the five likeliest)])])"""
    samples = [
        Sample(input=f"What is the capital of {country}?", target=city)
        for country, city in CAPITALS.items()
    ]
    task = Task(dataset=MemoryDataset(samples), solver=generate(), scorer=includes())
    (log,) = eval(task, model=model, log_dir=logs, display="none", score=True)
    assert log.status == "success", log.error.message
    answers = []
    for sample in log.samples:
        choice = sample.output.choices[0]
        steps = [
            (
                entry.logprob,
                sorted((x.logprob for x in entry.top_logprobs), reverse=True),
            )
            for entry in choice.logprobs.content
        ]
        answers.append((choice.message.text, steps))
    return log.results.scores[0].metrics["accuracy"].value, answers


def main() -> int:
    model, tokenizer = load()
    with tempfile.TemporaryDirectory() as folder, serve(model, tokenizer) as server:
        path = os.path.join(folder, "model")
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
        ours = get_model(
            f"openai-api/course/{server.model}",
            base_url=server.base_url,
            api_key="none",
            config=SETTINGS,
        )
        theirs = get_model(
            "hf/local",
            model_path=path,
            tokenizer_path=path,
            do_sample=False,
            config=SETTINGS,
        )
        over_http, http_answers = run(ours, folder)
        locally, local_answers = run(theirs, folder)

    same, largest, tokens = 0, 0.0, 0
    for (text, steps), (other, other_steps) in zip(
        http_answers, local_answers, strict=True
    ):
        same += text.strip() == other.strip()
        # The local provider also reports the EOS that ended the answer.
        for (mine, best), (yours, other_best) in zip(steps, other_steps, strict=False):
            tokens += 1
            differences = [abs(mine - yours)]
            differences += [abs(a - b) for a, b in zip(best, other_best, strict=True)]
            largest = max(largest, *differences)
    print(f"questions                     {len(CAPITALS)}")
    print(f"accuracy over HTTP            {over_http:.2f}")
    print(f"accuracy locally              {locally:.2f}")
    print(f"same answers                  {same}")
    print(f"tokens compared               {tokens}")
    print(f"largest difference of a log-probability  {largest:.2g}")
    return 0 if same == len(CAPITALS) and largest <= 1e-3 else 1


if __name__ == "__main__":
    sys.exit(main())

"""Real clients against the local server: plain chat, streamed chat, what they send.

For maintainers, since no client is a dependency of the course. In an environment of its
own, with the course and with as many of the clients as wanted:

    python -m venv ../clients
    ../clients/bin/pip install -r requirements.txt -r tests/models/clients/clients.txt
    npm install --prefix ../clients ai @ai-sdk/openai-compatible openai
    export NODE_PATH=$PWD/../clients/node_modules
    ../clients/bin/python tests/models/clients/run.py

Names of clients as arguments run these alone. `--url URL --model NAME` takes a server
that runs already, `--log FILE` the requests that it got, one JSON object a line. Prints
a table; ends with 1 if a client that is installed failed.
"""

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ASK = "What is the capital of France?"
KEY = "unused"


def openai(url, model, stream):
    from openai import OpenAI

    chat = OpenAI(base_url=url, api_key=KEY).chat.completions
    messages = [{"role": "user", "content": ASK}]
    answer = chat.create(model=model, messages=messages, stream=stream)
    if not stream:
        return answer.choices[0].message.content
    return "".join(chunk.choices[0].delta.content or "" for chunk in answer)


def langchain(url, model, stream):
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(base_url=url, api_key=KEY, model=model)
    if not stream:
        return chat.invoke(ASK).content
    return "".join(chunk.content for chunk in chat.stream(ASK))


def litellm(url, model, stream):
    from litellm import completion

    messages = [{"role": "user", "content": ASK}]
    answer = completion(
        f"openai/{model}", messages, api_base=url, api_key=KEY, stream=stream
    )
    if not stream:
        return answer.choices[0].message.content
    return "".join(chunk.choices[0].delta.content or "" for chunk in answer)


def llamaindex(url, model, stream):
    from llama_index.llms.openai_like import OpenAILike

    llm = OpenAILike(model=model, api_base=url, api_key=KEY, is_chat_model=True)
    if not stream:
        return llm.complete(ASK).text
    return "".join(part.delta for part in llm.stream_complete(ASK))


def instructor(url, model, stream):
    """Without a response model: its JSON needs tools or a JSON mode."""
    import instructor
    from openai import OpenAI

    client = instructor.from_openai(OpenAI(base_url=url, api_key=KEY))
    messages = [{"role": "user", "content": ASK}]
    answer = client.chat.completions.create(
        model=model, messages=messages, response_model=None, stream=stream
    )
    if not stream:
        return answer.choices[0].message.content
    return "".join(chunk.choices[0].delta.content or "" for chunk in answer)


def pydantic_ai(url, model, stream):
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=url, api_key=KEY)
    agent = Agent(OpenAIChatModel(model, provider=provider))
    if not stream:
        return agent.run_sync(ASK).output

    async def listen():
        async with agent.run_stream(ASK) as answer:
            return "".join([part async for part in answer.stream_text(delta=True)])

    return asyncio.run(listen())


def openai_agents(url, model, stream):
    from agents import Agent, OpenAIChatCompletionsModel, Runner, set_tracing_disabled
    from openai import AsyncOpenAI

    set_tracing_disabled(True)

    async def run():
        client = AsyncOpenAI(base_url=url, api_key=KEY)
        agent = Agent(name="A", model=OpenAIChatCompletionsModel(model, client))
        if not stream:
            return (await Runner.run(agent, ASK)).final_output
        answer = Runner.run_streamed(agent, ASK)
        async for _ in answer.stream_events():
            pass
        return answer.final_output

    return asyncio.run(run())


def smolagents(url, model, stream):
    from smolagents import OpenAIServerModel

    llm = OpenAIServerModel(model_id=model, api_base=url, api_key=KEY)
    messages = [{"role": "user", "content": [{"type": "text", "text": ASK}]}]
    if not stream:
        return llm.generate(messages).content
    return "".join(part.content or "" for part in llm.generate_stream(messages))


def dspy(url, model, stream):
    import dspy

    if stream:
        return None  # its streams are of programs
    llm = dspy.LM(f"openai/{model}", api_base=url, api_key=KEY, cache=False)
    return llm(ASK)[0]


def llm(url, model, stream):
    from llm.default_plugins.openai_models import Chat

    chat = Chat(model, model_name=model, api_base=url, key=KEY)
    answer = chat.prompt(ASK, stream=stream)
    return "".join(answer)


def inspect_ai(url, model, stream):
    from inspect_ai.model import get_model

    if stream:
        return None  # it reads whole answers
    ours = get_model(f"openai-api/course/{model}", base_url=url, api_key=KEY)
    return asyncio.run(ours.generate(ASK)).completion


def lm_eval(url, model, stream):
    """A task of one question, in a file of our own."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    os.environ["OPENAI_API_KEY"] = KEY
    import lm_eval

    if stream:
        return None  # it reads whole answers
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "test.jsonl")
        data.write_text(json.dumps({"question": ASK, "answer": "Paris"}) + "\n")
        task = {
            "task": "capitals",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": folder},
            "test_split": "test",
            "output_type": "generate_until",
            "doc_to_text": "{{question}}",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 16},
            "metric_list": [{"metric": "exact_match"}],
        }
        found = lm_eval.simple_evaluate(
            model="local-chat-completions",
            model_args={"model": model, "base_url": f"{url}/chat/completions"},
            tasks=[task],
            apply_chat_template=True,
            bootstrap_iters=0,
        )
    return found["samples"]["capitals"][0]["resps"][0][0]


def guidellm(url, model, stream):
    """A benchmark of one request. Streamed, it asks for a usage in each chunk, and with
    a fixed length for no end at EOS: the server has neither, and says so."""
    program = Path(sys.executable).parent / "guidellm"
    if not program.exists():
        raise ImportError("guidellm")
    if stream:
        return None
    with tempfile.TemporaryDirectory() as folder:
        data, report = Path(folder, "data.jsonl"), Path(folder, "report.json")
        data.write_text(json.dumps({"prompt": ASK}) + "\n")
        extras = json.dumps({"body": {"temperature": 0}})
        backend = {
            "kind": "openai_http",
            "target": url.removesuffix("/v1"),
            "model": model,
            "request_format": "/v1/chat/completions",
            "stream": "false",
            "extras": extras,
        }
        options = {
            "--backend": ",".join(f"{k}={v}" for k, v in backend.items()),
            "--profile": "kind=synchronous",
            "--constraint": "kind=max_requests,count=1",
            "--data": f"kind=json_file,path={data}",
            "--output": f"kind=json,path={report}",
        }
        words = [word for pair in options.items() for word in pair]
        command = [program, "run", *words, "--disable-console"]
        subprocess.run(command, capture_output=True, timeout=300, check=True)
        requests = json.loads(report.read_text())["benchmarks"][0]["requests"]
    for failed in requests["errored"]:
        raise RuntimeError(failed["info"]["error"])
    return requests["successful"][0]["output"]


def node(script):
    def ask(url, model, stream):
        command = ["node", HERE / script, url, model, ASK, "stream" if stream else ""]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if "ERR_MODULE_NOT_FOUND" in done.stderr or "Cannot find" in done.stderr:
            raise ImportError(script)
        if done.returncode:
            lines = [x for x in done.stderr.splitlines() if "Error" in x]
            raise RuntimeError((lines or done.stderr.splitlines() or ["?"])[0])
        return done.stdout

    return ask


def librechat(url, model, stream):
    """What LibreChat sends, by hand: it is a web application."""
    return by_hand(url, model, stream, user="6650f0", stream_options=None)


def open_webui(url, model, stream):
    """The same of Open WebUI: its requests, and those for a chat's title."""
    options = {"stream_options": {"include_usage": True}} if stream else {}
    return by_hand(url, model, stream, **options)


def by_hand(url, model, stream, **fields):
    import httpx

    body = {"model": model, "messages": [{"role": "user", "content": ASK}], **fields}
    body["stream"] = stream
    answer = httpx.post(f"{url}/chat/completions", json=body, timeout=300)
    answer.raise_for_status()
    if not stream:
        return answer.json()["choices"][0]["message"]["content"]
    events = [line[6:] for line in answer.text.splitlines() if line.startswith("data")]
    assert events.pop() == "[DONE]"
    choices = [choice for event in events for choice in json.loads(event)["choices"]]
    return "".join(choice["delta"].get("content", "") for choice in choices)


CLIENTS = {
    "openai": openai,
    "openai (JavaScript)": node("openai.js"),
    "AI SDK": node("ai_sdk.js"),
    "LangChain": langchain,
    "LiteLLM": litellm,
    "LlamaIndex": llamaindex,
    "instructor": instructor,
    "pydantic-ai": pydantic_ai,
    "OpenAI Agents": openai_agents,
    "smolagents": smolagents,
    "dspy": dspy,
    "llm": llm,
    "Inspect": inspect_ai,
    "LM Evaluation Harness": lm_eval,
    "guidellm": guidellm,
    "LibreChat's request": librechat,
    "Open WebUI's request": open_webui,
}


class Recorder:
    """Writes the body of each request to a file, a line each."""

    def __init__(self, app, path):
        self.app, self.path = app, path

    async def __call__(self, scope, receive, send):
        body = b""

        async def recorded():
            nonlocal body
            message = await receive()
            if message["type"] == "http.request":
                body += message.get("body", b"")
                if not message.get("more_body") and body:
                    with open(self.path, "ab") as file:
                        file.write(json.dumps(json.loads(body)).encode() + b"\n")
            return message

        await self.app(scope, recorded, send)


@contextlib.contextmanager
def course_server(log):
    """(url, name) of the course's model. Short answers; the requests go to `log`."""
    from tiny_models import load, serve
    from tiny_models.server import running

    build = running.build_app
    running.build_app = lambda *a, **k: Recorder(build(*a, **k), log)
    model, tokenizer = load()
    with serve(model, tokenizer, temperature=0) as server:
        yield server.base_url, server.model


def sent(log, start):
    """The fields of the last request from line `start` on, but for the usual ones."""
    lines = Path(log).read_text().splitlines()[start:] if os.path.exists(log) else []
    fields = json.loads(lines[-1]) if lines else {}
    usual = ("model", "messages", "stream")
    return {k: v for k, v in fields.items() if k not in usual}, len(lines) + start


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("clients", nargs="*", metavar="CLIENT", help=", ".join(CLIENTS))
    parser.add_argument("--url")
    parser.add_argument("--model")
    parser.add_argument("--log", default="/tmp/requests.jsonl")
    options = parser.parse_args()
    if options.url:
        place = contextlib.nullcontext((options.url, options.model))
    else:
        Path(options.log).unlink(missing_ok=True)
        place = course_server(options.log)
    failed = False
    with place as (url, model):
        _, seen = sent(options.log, 0)
        for name in options.clients or CLIENTS:
            for stream in (False, True):
                try:
                    text = CLIENTS[name](url, model, stream)
                    result = "-" if text is None else f"works: {text.strip()[:30]!r}"
                    if text is not None and "Paris" not in text:
                        result, failed = f"other text: {text[:40]!r}", True
                except ImportError as error:
                    result = f"not installed ({error})"
                except Exception as error:
                    result, failed = f"{type(error).__name__}: {error}"[:200], True
                fields, seen = sent(options.log, seen)
                kind = "streamed" if stream else "plain"
                print(f"| {name} | {kind} | {result} | `{json.dumps(fields)[:150]}` |")
                sys.stdout.flush()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

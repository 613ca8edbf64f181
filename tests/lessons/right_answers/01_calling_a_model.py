"""Right answers to lesson 01 in another style: each must pass all checks."""

import heapq
import itertools
import json
import math

from course.making.answers import reference, right

ask = reference("ask")


@right("ask")
def with_a_dict_of_fields(client, model, messages, **options):
    """The request as one dict."""
    request = {**options, "model": model, "messages": messages}
    (choice, *_) = client.chat.completions.create(**request).choices
    return choice.message.content


@right("ask")
def says_not_streamed(client, model, messages, **options):
    """stream=False is the default and may be said."""
    create = client.chat.completions.create
    response = create(messages=messages, model=model, stream=False, **options)
    return response.choices[0].message.content


@right("ask")
def through_json(client, model, messages, **options):
    """As a dict, as plain HTTP would give it."""
    response = client.chat.completions.create(
        model=model, messages=list(messages), **options
    )
    return response.model_dump()["choices"][0]["message"]["content"]


@right("stream_text")
def a_generator_expression(client, model, messages, **options):
    """Two loops, a filter, no yield."""
    options["stream"] = True
    stream = client.chat.completions.create(model=model, messages=messages, **options)
    choices = (choice for chunk in stream for choice in chunk.choices)
    contents = (choice.delta.content for choice in choices if choice.index == 0)
    return (content for content in contents if content)


@right("stream_text")
def with_filter(client, model, messages, **options):
    """filter(None, ...) drops None and empty text."""
    stream = client.chat.completions.create(
        messages=messages, model=model, stream=True, **options
    )
    choices = itertools.chain.from_iterable(chunk.choices for chunk in stream)
    first = itertools.filterfalse(lambda choice: choice.index, choices)
    yield from filter(None, (choice.delta.content for choice in first))


@right("stream_text")
def by_trying(client, model, messages, **options):
    """Catches the missing choice."""
    for chunk in client.chat.completions.create(
        model=model, messages=messages, stream=True, **options
    ):
        try:
            choice = min(chunk.choices, key=lambda choice: choice.index)
        except ValueError:
            continue
        text = choice.delta.content
        if choice.index == 0 and text is not None and text != "":
            yield text


@right("stream_text")
def in_a_with_statement(client, model, messages, **options):
    """The stream is a context manager: the connection is closed in any case."""
    with client.chat.completions.create(
        model=model, messages=messages, stream=True, **options
    ) as stream:
        for chunk in stream:
            texts = {choice.index: choice.delta.content for choice in chunk.choices}
            if text := texts.get(0):
                yield text


@right("stream_text")
def closed_by_hand(client, model, messages, **options):
    """Asks for each chunk with next, and closes the stream."""
    options |= {"model": model, "messages": messages, "stream": True}
    stream = client.chat.completions.create(**options)
    try:
        while (chunk := next(stream, None)) is not None:
            for choice in chunk.choices:
                if not choice.index and choice.delta.content:
                    yield choice.delta.content
    finally:
        stream.close()


@right("stream_text")
def by_the_clients_own_helper(client, model, messages, **options):
    """The client library's events, of which one kind is the chunks."""
    with client.chat.completions.stream(
        model=model, messages=messages, **options
    ) as stream:
        for event in stream:
            if event.type == "chunk":
                for choice in event.chunk.choices:
                    if choice.index == 0 and choice.delta.content:
                        yield choice.delta.content


@right("stream_text")
def through_the_raw_response(client, model, messages, **options):
    """The raw response, parsed into the stream; each chunk as a dict."""
    create = client.chat.completions.with_raw_response.create
    raw = create(model=model, messages=messages, stream=True, **options)
    for chunk in raw.parse():
        for choice in chunk.model_dump()["choices"]:
            if choice["index"] == 0:
                yield from filter(None, [choice["delta"]["content"]])


@right("top_alternatives")
def through_http(client, model, messages, n):
    """The client's own way to send any request."""
    body = {"model": model, "messages": messages, "max_completion_tokens": 1}
    body |= {"logprobs": True, "top_logprobs": n}
    answer = client.post("/chat/completions", body=body, cast_to=object)
    found = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    return [(x["token"], math.exp(x["logprob"])) for x in found]


@right("read_sse")
def in_blocks(lines):
    """Takes the lines up to each blank one."""
    lines = iter(lines)
    while True:
        block, ended = [], False
        for line in lines:
            if not line:
                ended = True
                break
            block.append(line)
        if not ended:
            return
        data = [x[5:].removeprefix(" ") for x in block if x.startswith("data:")]
        if data == ["[DONE]"]:
            return
        if data:
            yield json.loads("\n".join(data))


@right("read_sse")
def as_one_string(lines):
    """The event grows as a string."""
    event = None
    for line in lines:
        name, colon, value = line.partition(":")
        if line == "":
            if event == "[DONE]":
                break
            if event is not None:
                yield json.loads(event)
            event = None
        elif name == "data":
            value = value[1:] if value[:1] == " " else value
            event = value if event is None else f"{event}\n{value}"


@right("read_sse")
def with_two_generators(lines):
    """Texts of events first, then JSON up to the end."""

    def texts():
        data = []
        for line in lines:
            if not line and data:
                yield "\n".join(data)
                data.clear()
            elif line.startswith("data:"):
                data.append(line.removeprefix("data:").removeprefix(" "))

    return map(json.loads, itertools.takewhile(lambda text: text != "[DONE]", texts()))


@right("continue_chat")
def on_a_copy(client, model, history, user_message, **options):
    """Appends to a copy."""
    new = history.copy()
    new.append({"role": "user", "content": user_message})
    reply = ask(client, model, new, **options)
    new.append(dict(role="assistant", content=reply))
    return reply, new


@right("continue_chat")
def without_ask(client, model, history, user_message, **options):
    """The API itself, and a sum of lists."""
    question = [{"content": user_message, "role": "user"}]
    answer = client.chat.completions.create(
        model=model, messages=history + question, **options
    )
    text = answer.choices[0].message.content
    return (text, history + question + [{"role": "assistant", "content": text}])


@right("continue_chat")
def keeps_the_role_that_came(client, model, history, user_message, **options):
    """Takes the role from the response's message."""
    asked = list(history)
    asked += [{"role": "user", "content": user_message}]
    message = (
        client.chat.completions.create(model=model, messages=asked, **options)
        .choices[0]
        .message
    )
    kept = {"role": message.role, "content": message.content}
    return message.content, asked + [kept]


@right("top_alternatives")
def with_the_newer_name(client, model, messages, n):
    """max_completion_tokens, and e to the power."""
    response = client.chat.completions.create(
        model=model,
        messages=messages,
        max_completion_tokens=1,
        logprobs=True,
        top_logprobs=n,
    )
    found = response.choices[0].logprobs.content[0].top_logprobs
    return [(x.token, math.e**x.logprob) for x in found]


@right("top_alternatives")
def sorted_once_more(client, model, messages, n):
    """Does not trust the order of the API."""
    response = client.chat.completions.create(
        model=model, messages=messages, max_tokens=1, logprobs=True, top_logprobs=n
    )
    first = response.choices[0].logprobs.content[0]
    found = [(x.token, math.exp(x.logprob)) for x in first.top_logprobs]
    return sorted(found, key=lambda pair: -pair[1])


@right("top_alternatives")
def as_dicts(client, model, messages, n):
    """From the JSON of the response."""
    fields = {"max_tokens": 1, "temperature": 1, "logprobs": True, "top_logprobs": n}
    body = client.chat.completions.create(model=model, messages=messages, **fields)
    first = body.model_dump()["choices"][0]["logprobs"]["content"][0]
    return [(x["token"], math.exp(x["logprob"])) for x in first["top_logprobs"]][:n]


@right("top_alternatives")
def out_of_all_twenty(client, model, messages, n):
    """Asks for as many as there may be, and takes the n likeliest itself."""
    fields = {"max_tokens": 1, "logprobs": True, "top_logprobs": 20}
    response = client.chat.completions.create(model=model, messages=messages, **fields)
    found = response.choices[0].logprobs.content[0].top_logprobs
    best = heapq.nlargest(n, found, key=lambda entry: entry.logprob)
    return [(entry.token, math.exp(entry.logprob)) for entry in best]

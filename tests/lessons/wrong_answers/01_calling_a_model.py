"""Wrong answers to lesson 01, and what the learner must be told of each."""

import itertools
import json
import math

from course.making.answers import reference, wrong

ask = reference("ask")
stream_text = reference("stream_text")
continue_chat = reference("continue_chat")

# --- ask ------------------------------------------------------------------------------

TEXT = "test_the_text_of_the_first_choice"
REQUEST = "test_the_request_is_what_was_asked_for"


def respond(client, model, messages, **options):
    return client.chat.completions.create(model=model, messages=messages, **options)


@wrong("ask", TEXT, "That is the whole response")
def whole_response(client, model, messages, **options):
    """The response object, not its text."""
    return respond(client, model, messages, **options)


@wrong("ask", TEXT, "its text is in .content")
def whole_message(client, model, messages, **options):
    """The message object, not its text."""
    return respond(client, model, messages, **options).choices[0].message


@wrong("ask", TEXT, "should return a str, not None. Is a `return` missing?")
def prints_it(client, model, messages, **options):
    """Prints the text and returns nothing."""
    str(ask(client, model, messages, **options))


@wrong("ask", TEXT, "should give 'Hi!', not 'Bye!'")
def last_choice(client, model, messages, **options):
    """The last choice, where the first is asked for."""
    return respond(client, model, messages, **options).choices[-1].message.content


@wrong("ask", REQUEST, "are **options passed on?")
def options_dropped(client, model, messages, **options):
    """The options are not handed on."""
    return ask(client, model, messages)


@wrong("ask", REQUEST, "the request should have 3 messages, not 1. The first 2 are")
def last_message_only(client, model, messages, **options):
    """Sends the newest message without what came before."""
    return ask(client, model, messages[-1:], **options)


@wrong("ask", REQUEST, "`messages` was changed")
def appends_to_the_messages(client, model, messages, **options):
    """The answer is put into the caller's list."""
    text = ask(client, model, messages, **options)
    messages.append({"role": "assistant", "content": text})
    return text


@wrong("ask", "test_without_options_the_request_has_none", "put 'temperature' in")
def greedy_by_default(client, model, messages, **options):
    """Sets a temperature that nobody asked for."""
    options.setdefault("temperature", 0)
    return ask(client, model, messages, **options)


@wrong("ask", REQUEST, "the request's temperature")
def fixed_temperature(client, model, messages, **options):
    """Overrides the caller's temperature."""
    return ask(client, model, messages, **{**options, "temperature": 0})


@wrong("ask", REQUEST, "seed=None was given: None is handed on like")
def none_is_no_option(client, model, messages, **options):
    """Drops options that are None: the API may mean something by null."""
    given = {name: value for name, value in options.items() if value is not None}
    return ask(client, model, messages, **given)


@wrong("ask", REQUEST, "the request's stop should be 'x', not ['x']")
def stop_in_a_list(client, model, messages, **options):
    """Makes a list of what is asked for as it is."""
    if isinstance(options.get("stop"), str):
        options["stop"] = [options["stop"]]
    return ask(client, model, messages, **options)


@wrong("ask", REQUEST, "the request: message 2 lacks 'name': keep the messages")
def role_and_content_only(client, model, messages, **options):
    """A message may have other fields, such as a name."""
    known = [{"role": m["role"], "content": m["content"]} for m in messages]
    return ask(client, model, known, **options)


@wrong("ask", REQUEST, "`messages` was changed")
def strips_the_messages(client, model, messages, **options):
    """Tidies the caller's messages up, in place."""
    for message in messages:
        message["content"] = message["content"].strip()
    return ask(client, model, messages, **options)


@wrong("ask", TEXT, "Its spaces belong to it: no strip()")
def answer_stripped(client, model, messages, **options):
    """Tidies the answer up."""
    return ask(client, model, messages, **options).strip()


@wrong("ask", "test_each_call_is_a_request_of_its_own", "should give ['Hi!', 'Bye!']")
def remembers_answers(client, model, messages, **options):
    """A cache: the same request may get another answer."""
    known = vars(client).setdefault("known", {})
    if str(messages) not in known:
        known[str(messages)] = ask(client, model, messages, **options)
    return known[str(messages)]


@wrong(
    "ask",
    "test_ask_says_what_generate_says",
    "those that came are right, and the end is missing",
)
def tidied_up(client, model, messages, **options):
    """Cuts the text down to its first half."""
    text = ask(client, model, messages, **options)
    return text if "Hi!" in text else text[: len(text) // 2]


# --- stream_text ----------------------------------------------------------------------

PIECES = "test_pieces_worked_by_hand"
LAZY = "test_a_piece_comes_out_before_the_next_chunk_is_there"


def chunks(client, model, messages, **options):
    return respond(client, model, messages, stream=True, **options)


@wrong("stream_text", PIECES, "yield each piece")
def joined(*arguments, **options):
    """One string at the end: nothing to see until then."""
    return "".join(stream_text(*arguments, **options))


@wrong("stream_text", PIECES, "list index out of range. Is it a chunk without choices?")
def every_chunk_has_a_choice(*arguments, **options):
    """The chunk with the usage has no choices."""
    for chunk in chunks(*arguments, **options):
        if chunk.choices[0].delta.content:
            yield chunk.choices[0].delta.content


@wrong("stream_text", PIECES, "should give ['Pa', 'ris'], not ['', 'Pa', None, 'ris']")
def every_content(*arguments, **options):
    """Hands out None and empty pieces."""
    for chunk in chunks(*arguments, **options):
        if chunk.choices:
            yield chunk.choices[0].delta.content


@wrong("stream_text", PIECES, "should give ['Pa', 'ris'], not ['', 'Pa', 'ris']")
def all_but_none(*arguments, **options):
    """The first chunk's empty text is a piece."""
    for chunk in chunks(*arguments, **options):
        if chunk.choices and chunk.choices[0].delta.content is not None:
            yield chunk.choices[0].delta.content


@wrong("stream_text", PIECES, "should give ['Pa', 'ris'], not ['Pa']")
def stops_at_none(*arguments, **options):
    """Takes a chunk without text for the end."""
    started = False
    for chunk in chunks(*arguments, **options):
        text = chunk.choices[0].delta.content if chunk.choices else None
        if started and not text:
            return
        if text:
            started = True
            yield text


@wrong(
    "stream_text",
    "test_a_chunk_without_choices_may_come_at_any_place",
    "the stream is not over",
)
def stops_without_choices(*arguments, **options):
    """Takes a chunk without choices for the end."""
    for chunk in chunks(*arguments, **options):
        if not chunk.choices:
            break
        if chunk.choices[0].delta.content:
            yield chunk.choices[0].delta.content


@wrong(
    "stream_text",
    "test_the_request_of_a_stream",
    "no 'stream': ask for a stream with stream=True",
)
def not_streamed(client, model, messages, **options):
    """Asks for the whole answer and cuts it up."""
    for chunk in respond(client, model, messages, **options):
        if getattr(chunk, "choices", None) and chunk.choices[0].delta.content:
            yield chunk.choices[0].delta.content


@wrong("stream_text", "test_the_request_of_a_stream", "no 'temperature'")
def stream_without_options(client, model, messages, **options):
    """The options are not handed on."""
    return stream_text(client, model, messages)


@wrong("stream_text", LAZY, "yield inside the loop")
def collected_first(*arguments, **options):
    """A list of all pieces: right, and late."""
    return list(stream_text(*arguments, **options))


@wrong("stream_text", PIECES, "should give ['Pa', 'ris'], not ['Pa', 'Paris']")
def text_so_far(*arguments, **options):
    """Yields all the text so far each time."""
    text = ""
    for piece in stream_text(*arguments, **options):
        text += piece
        yield text


@wrong("stream_text", PIECES, "has been closed. yield inside the `with`")
def closed_before_it_is_read(*arguments, **options):
    """The generator is read when the `with` has ended, and the stream with it."""
    with chunks(*arguments, **options) as stream:
        some = (c.choices[0].delta.content for c in stream if c.choices)
        return (text for text in some if text)


@wrong("stream_text", PIECES, "returned None: yield each piece")
def prints_the_pieces(*arguments, **options):
    """Prints each piece and yields none."""
    "".join(stream_text(*arguments, **options))


@wrong("stream_text", "test_the_request_of_a_stream", "`messages` was changed")
def adds_the_answer(client, model, messages, **options):
    """Puts the answer into the caller's list."""
    text = ""
    for piece in stream_text(client, model, messages, **options):
        text += piece
        yield piece
    messages.append({"role": "assistant", "content": text})


@wrong(
    "stream_text",
    "test_the_request_of_a_stream",
    "nobody asked for 'top_p' in the request.",
)
def stream_with_a_limit_of_its_own(client, model, messages, **options):
    """Sets what nobody asked for."""
    return stream_text(client, model, messages, top_p=1, **options)


EVERY = "test_every_piece_of_text_comes_out"


@wrong("stream_text", EVERY, "not ['Oh', 'Ha', 'Ha', '!']")
def spaces_are_no_text(*arguments, **options):
    """A piece of white space is text, too."""
    return (text for text in stream_text(*arguments, **options) if text.strip())


@wrong("stream_text", EVERY, "not ['Oh', 'Ha', ' ', '\\n', '!']")
def repetitions_dropped(*arguments, **options):
    """Two equal pieces in a row are two pieces."""
    before = None
    for text in stream_text(*arguments, **options):
        if text != before:
            yield text
        before = text


@wrong("stream_text", EVERY, "not ['Oh', 'Ha', 'Ha', ' ', '\\n']")
def nothing_with_the_finish_reason(*arguments, **options):
    """The chunk with the finish reason may have text."""
    for chunk in chunks(*arguments, **options):
        if chunk.choices and chunk.choices[0].finish_reason:
            return
        if chunk.choices and chunk.choices[0].delta.content:
            yield chunk.choices[0].delta.content


@wrong("stream_text", EVERY, "not ['Ha', 'Ha', ' ', '\\n', '!']")
def nothing_with_the_role(*arguments, **options):
    """The chunk with the role may have text."""
    for chunk in chunks(*arguments, **options):
        delta = chunk.choices[0].delta if chunk.choices else None
        if delta and delta.content and not delta.role:
            yield delta.content


@wrong(
    "stream_text",
    "test_the_request_of_a_stream",
    "nobody asked for 'stream_options' in the request",
)
def asks_for_the_usage(*arguments, **options):
    """A stream needs no usage."""
    options.setdefault("stream_options", {"include_usage": True})
    return stream_text(*arguments, **options)


FIRST = "test_of_two_answers_the_first_is_streamed"


@wrong("stream_text", FIRST, "that with choice.index 0")
def all_choices(*arguments, **options):
    """Mixes the answers."""
    for chunk in chunks(*arguments, **options):
        yield from (c.delta.content for c in chunk.choices if c.delta.content)


@wrong("stream_text", FIRST, "not ['Pa', 'Ber', 'ris', '!']")
def first_choice_of_each_chunk(*arguments, **options):
    """A chunk may have another answer's choice alone."""
    for chunk in chunks(*arguments, **options):
        if chunk.choices and chunk.choices[0].delta.content:
            yield chunk.choices[0].delta.content


# --- read_sse -------------------------------------------------------------------------

EVENTS = "test_events_worked_by_hand"


@wrong("read_sse", EVENTS, "[DONE] and comments are not JSON")
def done_is_json(lines):
    """Decodes [DONE]."""
    return events(lines, end=None)


def events(lines, end="[DONE]", glue="\n", space=True, flush=False, load=json.loads):
    data = []
    for line in lines:
        if line.startswith("data:"):
            value = line[5:]
            data.append(value.removeprefix(" ") if space else value[1:])
        elif not line and data:
            event, data = glue.join(data), []
            if event == end:
                return
            yield load(event)
    if flush and data:
        yield load(glue.join(data))


@wrong("read_sse", EVENTS, "json.loads was given")
def each_line_alone(lines):
    """Decodes each data line; an event may have several."""
    for line in lines:
        if line.startswith("data:"):
            value = line[5:].strip()
            if value == "[DONE]":
                return
            yield json.loads(value)


@wrong("read_sse", EVENTS, "json.loads was given")
def a_space_must_follow(lines):
    """Cuts six characters: `data: `, though the space may be missing."""
    return events(lines, space=False)


@wrong("read_sse", EVENTS, "should give [{'a': 1}, {'b': 2}], not [{'a': 1}]")
def ignores_data_without_space(lines):
    """Asks for `data: ` with its space."""
    return events([x for x in lines if x.startswith("data: ") or not x])


@wrong("read_sse", EVENTS, "should give [{'t': '[DONE]'}, {'a': 1}], not []")
def done_anywhere(lines):
    """`"[DONE]" in line` finds it inside a text, too."""
    data = []
    for line in lines:
        if "[DONE]" in line:
            return
        if line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif not line and data:
            yield json.loads("\n".join(data))
            data = []


@wrong("read_sse", EVENTS, "should give [{'a': 1}], not [{'a': 1}, {'b': 2}]")
def unfinished_event_counts(lines):
    """Hands out an event that no blank line ended."""
    return events(lines, flush=True)


@wrong("read_sse", "test_the_lines_of_an_event_do_not_run_into_one", "line ends")
def glued_without_line_ends(lines):
    """Joins an event's lines with nothing between them."""
    return events(lines, glue="")


@wrong("read_sse", EVENTS, "json.loads was given ''")
def each_blank_line_is_an_event(lines):
    """Two blank lines in a row make an empty event."""
    data = []
    for line in lines:
        if line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif not line:
            if data == ["[DONE]"]:
                return
            yield json.loads("\n".join(data))
            data = []


@wrong("read_sse", EVENTS, "should give [{'a': 1}, {'b': 2}], not ['{")
def text_of_events(lines):
    """The text of each event, not the document in it."""
    return events(lines, load=str)


@wrong("read_sse", "test_nothing_after_done_is_read", "after [DONE]")
def reads_on(lines):
    """Reads to the end of the stream, which may never come."""
    return iter(list(events(list(lines))))


@wrong("read_sse", "test_an_event_comes_out_before_the_next_one_is_there", "blank line")
def all_events_first(lines):
    """A list of all events, when the stream is over."""
    return list(events(lines))


def events_of_fields(lines, name_is, line_of=str, blank=""):
    """The events, where `name_is` says whether a field is the data."""
    data = []
    for line in lines:
        name, _, value = line_of(line).partition(":")
        if name_is(name):
            data.append(value.removeprefix(" "))
        elif line in ("", blank) and data:
            event, data = "\n".join(data), []
            if event == "[DONE]":
                return
            yield json.loads(event)


@wrong(
    "read_sse",
    EVENTS,
    "given '1\\n3\\n{}'. It should be '{}': only a field named exactly 'data'",
)
def names_that_begin_with_data(lines):
    """`dataset: 1` is another field."""
    return events_of_fields(lines, lambda name: name.startswith("data"))


@wrong(
    "read_sse",
    EVENTS,
    "given '2\\n3\\n4\\n{}'. It should be '{}': only a field named exactly 'data'",
)
def sloppy_names(lines):
    """`Data` and `data ` are other fields."""
    return events_of_fields(lines, lambda name: name.strip().lower() == "data")


@wrong(
    "read_sse",
    EVENTS,
    "given '4\\n{}'. It should be '{}': only a field named exactly 'data'",
)
def indented_fields(lines):
    """A name with a space before it is another name."""
    return events_of_fields(lines, lambda name: name == "data", str.lstrip)


@wrong(
    "read_sse",
    EVENTS,
    "The line ' ' ended the event: only '' is a blank line",
)
def a_space_is_blank(lines):
    """Only an empty line ends an event."""
    return events_of_fields(lines, lambda name: name == "data", blank=" ")


@wrong(
    "read_sse",
    EVENTS,
    "A line that begins with a colon is a comment",
)
def data_in_a_comment(lines):
    """`: data: 1` is a comment."""
    return events([x[x.find("data:") :] if ": data:" in x else x for x in lines])


@wrong(
    "read_sse",
    EVENTS,
    "lstrip and strip remove letters, not a word",
)
def lstrip_takes_letters(lines):
    """lstrip removes any of the letters, not the name."""
    name = "data: "
    return events(
        "data:" + x.lstrip(name) if x.startswith("data:") else x for x in lines
    )


@wrong(
    "read_sse",
    EVENTS,
    "may be missing before [DONE], too",
)
def done_with_a_space(lines):
    """The space before [DONE] may be missing."""
    return events(itertools.takewhile(lambda x: x != "data: [DONE]", lines), end=None)


@wrong(
    "read_sse",
    EVENTS,
    "read_sse(['data: {}', '']) should give [{}], not []. An empty document",
)
def empty_documents_dropped(lines):
    """{} is a document."""
    return filter(None, events(lines))


@wrong(
    "read_sse",
    EVENTS,
    "an iterator. lines is a list here: use a for loop",
)
def next_of_the_lines(lines):
    """A list is iterable, but next wants an iterator."""
    return events(iter(lambda: next(lines, None), None))


# --- continue_chat --------------------------------------------------------------------

TURN = "test_a_turn_worked_by_hand"
WHOLE = "test_the_whole_history_is_sent"


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


@wrong(
    "continue_chat",
    TURN,
    "should have 2 messages, not 1. The first that differs is message 2",
)
def forgets_its_reply(client, model, history, user_message, **options):
    """The reply is not put into the history."""
    messages = [*history, user(user_message)]
    return ask(client, model, messages, **options), messages


@wrong(
    "continue_chat",
    TURN,
    "should have 2 messages, not 1. The first is missing.",
)
def forgets_the_question(client, model, history, user_message, **options):
    """The user's message is sent, but not kept."""
    reply = ask(client, model, [*history, user(user_message)], **options)
    return reply, [*history, assistant(reply)]


@wrong("continue_chat", TURN, "'role': 'user', 'content': 'Hello!'")
def reply_as_user(client, model, history, user_message, **options):
    """The reply gets the role of the user."""
    messages = [*history, user(user_message)]
    reply = ask(client, model, messages, **options)
    return reply, [*messages, user(reply)]


@wrong("continue_chat", TURN, "should return a tuple, not a str")
def reply_alone(client, model, history, user_message, **options):
    """The new history is not returned."""
    return ask(client, model, [*history, user(user_message)], **options)


@wrong(
    "continue_chat",
    TURN,
    "the reply should be 'Hello!', not [",
)
def wrong_order(*arguments, **options):
    """(history, reply) for (reply, history)."""
    return continue_chat(*arguments, **options)[::-1]


@wrong("continue_chat", WHOLE, "it knows only what you send")
def sends_the_new_message_alone(client, model, history, user_message, **options):
    """Trusts the server to remember the rest."""
    reply = ask(client, model, [user(user_message)], **options)
    return reply, [*history, user(user_message), assistant(reply)]


@wrong("continue_chat", WHOLE, "it knows only what you send")
def user_messages_only(client, model, history, user_message, **options):
    """Leaves out the assistant's part of the history."""
    mine = [m for m in history if m["role"] != "assistant"]
    reply = ask(client, model, [*mine, user(user_message)], **options)
    return reply, [*history, user(user_message), assistant(reply)]


@wrong("continue_chat", "test_the_history_is_left_alone", "`history` was changed")
def appends(client, model, history, user_message, **options):
    """append changes the caller's list."""
    history.append(user(user_message))
    reply = ask(client, model, history, **options)
    history.append(assistant(reply))
    return reply, history


@wrong("continue_chat", "test_options_go_through", "are **options passed on?")
def chat_without_options(client, model, history, user_message, **options):
    """The options are not handed on."""
    return continue_chat(client, model, history, user_message)


@wrong(
    "continue_chat",
    "test_the_reply_goes_into_the_history_as_it_came",
    "'content': 'Hello!'}. Its spaces belong to it: no strip()",
)
def history_stripped(client, model, history, user_message, **options):
    """Tidies the reply up before it is sent back to the model."""
    reply, new = continue_chat(client, model, history, user_message, **options)
    return reply, [*new[:-1], assistant(reply.strip())]


@wrong(
    "continue_chat",
    "test_the_history_is_left_alone_where_the_api_fails",
    "`history` was changed",
)
def appends_and_pops(client, model, history, user_message, **options):
    """If the API fails, the message stays."""
    history.append(user(user_message))
    reply = ask(client, model, history, **options)
    return reply, [*history[:-1], history.pop(), assistant(reply)]


@wrong(
    "continue_chat",
    WHOLE,
    "Keep each message as it is, empty ones and two in a row",
)
def merges_user_messages(client, model, history, user_message, **options):
    """Two messages of the user in a row are two messages."""
    if not history or history[-1]["role"] != "user":
        return continue_chat(client, model, history, user_message, **options)
    *before, last = history
    merged = last["content"] + "\n" + user_message
    return continue_chat(client, model, before, merged, **options)


@wrong(
    "continue_chat",
    WHOLE,
    "the API replied '': the new history should end with",
)
def empty_reply_dropped(client, model, history, user_message, **options):
    """An empty reply is one, too: without it two users speak in a row."""
    reply, new = continue_chat(client, model, history, user_message, **options)
    return reply, new if reply else new[:-1]


@wrong(
    "continue_chat",
    WHOLE,
    "Keep each message as it is, empty ones and two in a row",
)
def empty_message_dropped(client, model, history, user_message, **options):
    """An empty message is one, too."""
    messages = [*history, user(user_message)] if user_message else list(history)
    reply = ask(client, model, messages, **options)
    return reply, [*messages, assistant(reply)]


@wrong(
    "continue_chat",
    WHOLE,
    "are missing.",
)
def last_ten_messages(client, model, history, user_message, **options):
    """Forgets how a long conversation began."""
    return continue_chat(client, model, history[-9:], user_message, **options)


@wrong(
    "continue_chat",
    WHOLE,
    "Keep the order.",
)
def system_messages_first(client, model, history, user_message, **options):
    """The order of the messages is the caller's."""
    reply, new = continue_chat(client, model, history, user_message, **options)
    return reply, sorted(new, key=lambda message: message["role"] != "system")


@wrong(
    "continue_chat",
    WHOLE,
    "the new history: message 2 lacks 'name': keep the messages",
)
def other_fields_lost(client, model, history, user_message, **options):
    """A message may have a name."""
    reply, new = continue_chat(client, model, history, user_message, **options)
    return reply, [{"role": m["role"], "content": m["content"]} for m in new]


# --- top_alternatives -----------------------------------------------------------------

BY_HAND = "test_alternatives_worked_by_hand"
NEEDED = "test_no_more_is_asked_for_than_needed"


def entries(client, model, messages, n, **options):
    options = {"max_tokens": 1, "logprobs": True, "top_logprobs": n, **options}
    options = {k: v for k, v in options.items() if v is not None}
    return respond(client, model, messages, **options).choices[0].logprobs.content[0]


def pairs(client, model, messages, n, of=math.exp, **options):
    first = entries(client, model, messages, n, **options)
    return [(entry.token, of(entry.logprob)) for entry in first.top_logprobs]


@wrong("top_alternatives", BY_HAND, "These are logarithms: exp takes them back")
def logarithms(client, model, messages, n):
    """Hands out log-probabilities."""
    return pairs(client, model, messages, n, of=float)


@wrong("top_alternatives", BY_HAND, "should be [0.5, 0.25], not [0.203, 0.041]")
def ten_to_the_power(client, model, messages, n):
    """Takes them for decimal logarithms."""
    return pairs(client, model, messages, n, of=lambda x: 10**x)


@wrong("top_alternatives", BY_HAND, "should be [0.5, 0.25], not [0.619, 0.383]")
def two_to_the_power(client, model, messages, n):
    """Takes them for logarithms to the base 2."""
    return pairs(client, model, messages, n, of=lambda x: 2**x)


@wrong("top_alternatives", BY_HAND, "should be [0.5, 0.25], not [0.667, 0.333]")
def made_to_sum_to_1(client, model, messages, n):
    """The n likeliest are not all there is."""
    found = pairs(client, model, messages, n)
    total = sum(p for _, p in found)
    return [(token, p / total) for token, p in found]


@wrong("top_alternatives", BY_HAND, "should return a list, not a dict")
def a_dict(client, model, messages, n):
    """A dict: two tokens may have the same text."""
    return dict(pairs(client, model, messages, n))


@wrong(
    "top_alternatives",
    BY_HAND,
    "each entry should be a tuple, (token, probability), not a list",
)
def lists_in_a_list(client, model, messages, n):
    """Lists, where pairs are asked for."""
    return [list(pair) for pair in pairs(client, model, messages, n)]


@wrong("top_alternatives", BY_HAND, "should be ['Yes', 'No'], not ['Yes']")
def the_chosen_token_alone(client, model, messages, n):
    """The token that was chosen, without its alternatives."""
    first = entries(client, model, messages, n)
    return [(first.token, math.exp(first.logprob))]


@wrong("top_alternatives", BY_HAND, "should be ['Yes', 'No'], not ['No', 'Yes']")
def least_likely_first(client, model, messages, n):
    """Sorted the wrong way round."""
    return sorted(pairs(client, model, messages, n), key=lambda pair: pair[1])


@wrong("top_alternatives", "test_the_messages_are_left_alone", "`messages` was changed")
def instructs_the_model(client, model, messages, n):
    """Adds an instruction of its own to the caller's list."""
    messages.insert(0, {"role": "system", "content": "Answer with one word."})
    return pairs(client, model, messages, n)


@wrong(
    "top_alternatives",
    NEEDED,
    "the request has no limit: one token is enough, max_completion_tokens=1",
)
def a_whole_answer(client, model, messages, n):
    """Pays for an answer of which one token is needed."""
    return pairs(client, model, messages, n, max_tokens=None)


@wrong(
    "top_alternatives",
    NEEDED,
    "no 'logprobs': top_logprobs needs logprobs=True",
)
def without_logprobs(client, model, messages, n):
    """top_logprobs needs logprobs=True."""
    return pairs(client, model, messages, n, logprobs=None)


ALTERNATIVES = "test_the_alternatives_are_those_of_the_api"


@wrong("top_alternatives", NEEDED, "for n=2 the request's top_logprobs is 1")
def one_alternative(client, model, messages, n):
    """Asks for the likeliest alone, and cannot give n."""
    return pairs(client, model, messages, n, top_logprobs=1)


@wrong(
    "top_alternatives",
    ALTERNATIVES,
    "Two tokens may have the same text: each entry counts",
)
def one_for_each_text(client, model, messages, n):
    """A dict by text: two tokens that have the same text become one."""
    return list(dict(pairs(client, model, messages, n)).items())


@wrong(
    "top_alternatives",
    ALTERNATIVES,
    "That is the drawn token, which need not be",
)
def the_drawn_token_for_one(client, model, messages, n):
    """The token that was drawn need not be the likeliest."""
    first = entries(client, model, messages, n)
    if n == 1:
        return [(first.token, math.exp(first.logprob))]
    return [(x.token, math.exp(x.logprob)) for x in first.top_logprobs]


@wrong(
    "top_alternatives",
    ALTERNATIVES,
    "' Yes' and 'Yes' are two tokens: no strip()",
)
def tokens_stripped(client, model, messages, n):
    """' Yes' and 'Yes' are two tokens."""
    return [(token.strip(), p) for token, p in pairs(client, model, messages, n)]


@wrong(
    "top_alternatives",
    ALTERNATIVES,
    "whose probability is rounded to 0 is one, too",
)
def without_probabilities_of_0(client, model, messages, n):
    """Drops what is so unlikely that exp gives 0."""
    return [pair for pair in pairs(client, model, messages, n) if pair[1]]


@wrong("top_alternatives", ALTERNATIVES, "the drawn token has no place of its own")
def drawn_token_first(client, model, messages, n):
    """The token that was drawn before those that are likelier."""
    first = entries(client, model, messages, n)
    ordered = sorted(first.top_logprobs, key=lambda entry: entry.token != first.token)
    return [(entry.token, math.exp(entry.logprob)) for entry in ordered]

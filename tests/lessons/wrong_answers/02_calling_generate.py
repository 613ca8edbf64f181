"""Wrong answers to lesson 02, and what the learner must be told of each."""

import torch
import torch.nn.functional as F
from transformers import BatchEncoding

from course.making.answers import reference, wrong

build = reference("build_prompt")
text_of = reference("new_text")

# What each call of the chat template needs.
READY = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
LEFT = {"padding": True, "tokenizer_kwargs": {"padding_side": "left"}}


# --- build_prompt ---------------------------------------------------------------------

PROMPT = "test_the_prompt_worked_by_hand"


@wrong("build_prompt", PROMPT, "The generation prompt is missing")
def no_generation_prompt(tokenizer, messages):
    """Nobody says whose turn it is."""
    return tokenizer.apply_chat_template(
        messages, return_tensors="pt", return_dict=True
    )


@wrong(
    "build_prompt", PROMPT, "add_generation_prompt=True, and no continue_final_message"
)
def continues_the_question(tokenizer, messages):
    """continue_final_message is for a message that is to be completed."""
    return tokenizer.apply_chat_template(
        messages, continue_final_message=True, return_tensors="pt", return_dict=True
    )


@wrong("build_prompt", PROMPT, "an empty message")
def an_empty_answer_to_fill(tokenizer, messages):
    """An empty message of the assistant is closed already."""
    empty = {"role": "assistant", "content": ""}
    return tokenizer.apply_chat_template(
        [*messages, empty], return_tensors="pt", return_dict=True
    )


@wrong("build_prompt", PROMPT, "should return a BatchEncoding, not a Tensor")
def ids_only(tokenizer, messages):
    """The ids alone, as before transformers 5: the mask is lost."""
    return build(tokenizer, messages)["input_ids"]


@wrong("build_prompt", PROMPT, "should return a BatchEncoding, not a str")
def a_string(tokenizer, messages):
    """tokenize=False gives text, and a model takes numbers."""
    return tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )


@wrong("build_prompt", PROMPT, "not a dict, which has no .to(device)")
def a_plain_dict(tokenizer, messages):
    """A dict has no .to(device)."""
    return dict(build(tokenizer, messages))


@wrong(
    "build_prompt",
    PROMPT,
    'input_ids should be a tensor, not a list: return_tensors="pt"',
)
def lists_of_numbers(tokenizer, messages):
    """Without return_tensors the ids are a list, and without a batch dimension."""
    return tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=True
    )


@wrong("build_prompt", PROMPT, "has no attention_mask")
def no_mask(tokenizer, messages):
    """The mask is dropped on the way."""
    return BatchEncoding({"input_ids": build(tokenizer, messages)["input_ids"]})


@wrong("build_prompt", PROMPT, "should be (1, seq), not (20,)")
def no_batch_dimension(tokenizer, messages):
    """A single prompt still is a batch, of one."""
    prompt = build(tokenizer, messages)
    return BatchEncoding({name: values[0] for name, values in prompt.items()})


@wrong("build_prompt", PROMPT, "Only the last message is in it")
def the_last_message_only(tokenizer, messages):
    """The model remembers nothing: it needs the whole conversation."""
    return build(tokenizer, messages[-1:])


@wrong("build_prompt", PROMPT, "The chat template was not used")
def the_bare_question(tokenizer, messages):
    """A chat model's question without the template that it was trained on."""
    return tokenizer(messages[-1]["content"], return_tensors="pt")


@wrong("build_prompt", PROMPT, "The spaces of a message belong to it")
def stripped_messages(tokenizer, messages):
    """Tidies up what was said."""
    return build(tokenizer, [m | {"content": m["content"].strip()} for m in messages])


@wrong("build_prompt", PROMPT, "that is not in them")
def a_system_message_of_its_own(tokenizer, messages):
    """Adds an instruction that nobody gave."""
    system = {"role": "system", "content": "You are a helpful assistant."}
    return build(tokenizer, [system, *messages])


@wrong("build_prompt", PROMPT, "The end was cut off")
def truncated(tokenizer, messages):
    """Truncation cuts at the end, where the question stands."""
    return tokenizer.apply_chat_template(
        messages, **READY, truncation=True, max_length=64
    )


@wrong("build_prompt", "test_no_second_bos_is_added", "puts a BOS before each text")
def text_first_then_ids(tokenizer, messages):
    """The tokenizer adds its special tokens to a text that has them already."""
    text = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    return tokenizer(text, return_tensors="pt")


@wrong(
    "build_prompt",
    "test_the_attention_mask_of_a_prompt",
    "even where it is the pad token",
)
def pad_for_eos(tokenizer, messages):
    """With EOS as the pad token, a mask from the ids hides each message's end."""
    tokenizer.pad_token = tokenizer.eos_token
    ids = build(tokenizer, messages)["input_ids"]
    mask = (ids != tokenizer.pad_token_id).long()
    return BatchEncoding({"input_ids": ids, "attention_mask": mask})


@wrong(
    "build_prompt",
    "test_the_attention_mask_of_a_prompt",
    "The EOS of a message is text",
)
def a_mask_from_the_ids(tokenizer, messages):
    """Takes each pad token for padding, and with many models that is EOS."""
    ids = build(tokenizer, messages)["input_ids"]
    mask = (ids != tokenizer.pad_token_id).long()
    return BatchEncoding({"input_ids": ids, "attention_mask": mask})


@wrong("build_prompt", PROMPT, "it is the model's turn whichever role spoke last")
def turn_after_users_only(tokenizer, messages):
    """It is the model's turn after a tool's message, too."""
    asked = messages[-1]["role"] == "user"
    return tokenizer.apply_chat_template(
        messages, **READY | {"add_generation_prompt": asked}
    )


@wrong("build_prompt", PROMPT, "should be torch.int64, not torch.int32")
def ids_of_32_bits(tokenizer, messages):
    """Half the memory, and another dtype than asked for."""
    prompt = build(tokenizer, messages)
    return BatchEncoding(prompt | {"input_ids": prompt["input_ids"].int()})


@wrong("build_prompt", "test_the_attention_mask_of_a_prompt", "should be torch.int64")
def a_mask_of_floats(tokenizer, messages):
    """torch.ones makes float32 unless told otherwise."""
    ids = build(tokenizer, messages)["input_ids"]
    return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones(ids.shape)})


@wrong("build_prompt", "test_the_messages_are_left_alone", "was changed")
def adds_to_the_messages(tokenizer, messages):
    """Puts its own message into the caller's list."""
    messages.append({"role": "assistant", "content": ""})
    return build(tokenizer, messages[:-1])


@wrong("build_prompt", "test_the_template_is_that_of_the_tokenizer", "the roles")
def roles_by_hand(tokenizer, messages):
    """Each model has its own template: one written out fits one model."""
    text = "".join(f"<{m['role']}>{m['content']}</s>" for m in messages)
    return tokenizer(
        text + "<assistant>", add_special_tokens=False, return_tensors="pt"
    )


@wrong(
    "build_prompt",
    "test_the_template_is_that_of_the_tokenizer",
    "not in a message that was begun: add_generation_prompt=True",
)
def continues_an_empty_answer(tokenizer, messages):
    """Completes an empty answer: with some templates that is the same."""
    empty = {"role": "assistant", "content": ""}
    return tokenizer.apply_chat_template(
        [*messages, empty],
        continue_final_message=True,
        return_tensors="pt",
        return_dict=True,
    )


# --- new_text -------------------------------------------------------------------------

TEXT = "test_new_text_worked_by_hand"


@wrong("new_text", TEXT, "The prompt is still in it")
def decodes_all(tokenizer, input_ids, output_ids):
    """generate returns the prompt, too."""
    return tokenizer.decode(output_ids[0], skip_special_tokens=True)


@wrong("new_text", TEXT, "skip_special_tokens=True")
def special_tokens_kept(tokenizer, input_ids, output_ids):
    """EOS is part of the text."""
    return tokenizer.decode(output_ids[0, input_ids.shape[1] :])


@wrong("new_text", TEXT, "Cut the ids, not the text")
def cut_by_the_length_of_the_text(tokenizer, input_ids, output_ids):
    """The prompt with its special tokens is longer than without them."""
    text = tokenizer.decode(output_ids[0], skip_special_tokens=True)
    return text[len(tokenizer.decode(input_ids[0])) :]


@wrong("new_text", TEXT, "Cut the ids, not the text")
def prompt_replaced_everywhere(tokenizer, input_ids, output_ids):
    """An answer may repeat the prompt, and replace finds it there, too."""
    prompt = tokenizer.decode(input_ids[0], skip_special_tokens=True)
    text = tokenizer.decode(output_ids[0], skip_special_tokens=True)
    return text.replace(prompt, "")


@wrong("new_text", TEXT, "Cut the ids, not the text")
def split_at_the_prompt(tokenizer, input_ids, output_ids):
    """The last piece begins after the last place where the prompt's words occur."""
    prompt = tokenizer.decode(input_ids[0], skip_special_tokens=True)
    text = tokenizer.decode(output_ids[0], skip_special_tokens=True)
    return text.split(prompt)[-1]


@wrong("new_text", TEXT, "Cut the ids, not the text")
def lstrip_takes_letters(tokenizer, input_ids, output_ids):
    """lstrip removes any of the letters, not the word."""
    prompt = tokenizer.decode(input_ids[0], skip_special_tokens=True)
    text = tokenizer.decode(output_ids[0], skip_special_tokens=True)
    return text.lstrip(prompt)


@wrong("new_text", TEXT, "The prompt is still in it")
def split_at_the_role(tokenizer, input_ids, output_ids):
    """Looks for one template's marker, which other prompts do not have."""
    text = tokenizer.decode(output_ids[0], skip_special_tokens=True)
    return text.split("<assistant>")[-1]


@wrong(
    "new_text",
    TEXT,
    "not 'bcde'. The prompt has input_ids.shape[1] tokens, and len(input_ids)",
)
def rows_for_tokens(tokenizer, input_ids, output_ids):
    """len of a (1, seq) tensor is 1."""
    return tokenizer.decode(output_ids[0, len(input_ids) :], skip_special_tokens=True)


@wrong("new_text", TEXT, "The first new token is missing")
def one_too_late(tokenizer, input_ids, output_ids):
    """Off by one: position n is the first new token."""
    new = output_ids[0, input_ids.shape[1] + 1 :]
    return tokenizer.decode(new, skip_special_tokens=True)


@wrong(
    "new_text",
    TEXT,
    "not 'cde'. The last token of the prompt is still in it: the first new token",
)
def one_too_early(tokenizer, input_ids, output_ids):
    """Off by one: the prompt's last token is not new."""
    new = output_ids[0, input_ids.shape[1] - 1 :]
    return tokenizer.decode(new, skip_special_tokens=True)


@wrong("new_text", TEXT, "The last token is not always EOS")
def drops_the_last_token(tokenizer, input_ids, output_ids):
    """An answer that was cut for its length has no EOS."""
    new = output_ids[0, input_ids.shape[1] : -1]
    return tokenizer.decode(new, skip_special_tokens=True)


@wrong(
    "new_text", TEXT, "Nothing is new here. Counted from the end, [-0:] is everything"
)
def counted_from_the_end(tokenizer, input_ids, output_ids):
    """With no new token, -0 is the beginning."""
    new = output_ids.shape[1] - input_ids.shape[1]
    return tokenizer.decode(output_ids[0, -new:], skip_special_tokens=True)


@wrong("new_text", TEXT, "One text, not a list")
def a_list_of_one(tokenizer, input_ids, output_ids):
    """Decoding two dimensions gives a list."""
    new = output_ids[:, input_ids.shape[1] :]
    return tokenizer.decode(new, skip_special_tokens=True)


@wrong("new_text", TEXT, "These are token ids")
def ids_for_text(tokenizer, input_ids, output_ids):
    """The new tokens, not decoded."""
    return output_ids[0, input_ids.shape[1] :]


@wrong("new_text", TEXT, "The spaces belong to the text")
def stripped(tokenizer, input_ids, output_ids):
    """A space at the beginning is part of what was said."""
    return text_of(tokenizer, input_ids, output_ids).strip()


@wrong("new_text", TEXT, "skip_special_tokens=True")
def only_eos_removed(tokenizer, input_ids, output_ids):
    """EOS is not the only special token."""
    text = tokenizer.decode(output_ids[0, input_ids.shape[1] :])
    return text.replace(tokenizer.eos_token, "")


@wrong("new_text", TEXT, "A letter may take several tokens")
def token_by_token(tokenizer, input_ids, output_ids):
    """A letter of two tokens cannot be decoded in halves."""
    new = output_ids[0, input_ids.shape[1] :]
    return "".join(tokenizer.decode([t], skip_special_tokens=True) for t in new)


# --- reply ----------------------------------------------------------------------------

REPLY = "test_reply_worked_by_hand"
OPTIONS = "test_generation_options_go_through_unchanged"
SAYS = "test_reply_is_what_generate_says"


@wrong("reply", REPLY, "The prompt is still in it")
def echoes_the_prompt(model, tokenizer, messages, **generation):
    """Decodes all that generate returned."""
    prompt = build(tokenizer, messages).to(model.device)
    output = model.generate(**prompt, **generation)
    return tokenizer.decode(output[0], skip_special_tokens=True)


@wrong("reply", REPLY, "skip_special_tokens=True")
def ends_in_eos(model, tokenizer, messages, **generation):
    """Shows the special tokens."""
    prompt = build(tokenizer, messages).to(model.device)
    output = model.generate(**prompt, **generation)
    return tokenizer.decode(output[0, prompt["input_ids"].shape[1] :])


@wrong("reply", REPLY, "pass ids and mask, **prompt")
def generate_without_a_mask(model, tokenizer, messages, **generation):
    """generate has to guess the mask, and cannot where padding is EOS."""
    ids = build(tokenizer, messages)["input_ids"].to(model.device)
    return text_of(tokenizer, ids, model.generate(ids, **generation))


@wrong("reply", REPLY, "unpack it, **prompt")
def the_encoding_itself(model, tokenizer, messages, **generation):
    """Since transformers 5 the template gives a dictionary, not ids."""
    prompt = build(tokenizer, messages).to(model.device)
    output = model.generate(prompt, **generation)
    return text_of(tokenizer, prompt["input_ids"], output)


@wrong("reply", REPLY, "The EOS inside a prompt is text")
def mask_from_the_ids(model, tokenizer, messages, **generation):
    """Where EOS is the pad token, too, it hides the end of each message."""
    ids = build(tokenizer, messages)["input_ids"].to(model.device)
    mask = (ids != tokenizer.pad_token_id).long()
    output = model.generate(input_ids=ids, attention_mask=mask, **generation)
    return text_of(tokenizer, ids, output)


@wrong("reply", REPLY, "The generation prompt is missing")
def no_turn_of_the_model(model, tokenizer, messages, **generation):
    """A prompt of its own, without the generation prompt."""
    prompt = tokenizer.apply_chat_template(
        messages, return_tensors="pt", return_dict=True
    ).to(model.device)
    output = model.generate(**prompt, **generation)
    return text_of(tokenizer, prompt["input_ids"], output)


@wrong("reply", REPLY, "Only the last message is in it")
def forgets_the_conversation(model, tokenizer, messages, **generation):
    """The last message alone."""
    prompt = build(tokenizer, messages[-1:]).to(model.device)
    output = model.generate(**prompt, **generation)
    return text_of(tokenizer, prompt["input_ids"], output)


@wrong("reply", REPLY, "The spaces belong to the text")
def reply_stripped(model, tokenizer, messages, **generation):
    """strip() changes what the model said."""
    prompt = build(tokenizer, messages).to(model.device)
    output = model.generate(**prompt, **generation)
    return text_of(tokenizer, prompt["input_ids"], output).strip()


@wrong("reply", REPLY, "One text, not a list")
def reply_in_a_list(model, tokenizer, messages, **generation):
    """batch_decode gives a list, also of one."""
    prompt = build(tokenizer, messages).to(model.device)
    output = model.generate(**prompt, **generation)
    new = output[:, prompt["input_ids"].shape[1] :]
    return tokenizer.batch_decode(new, skip_special_tokens=True)


@wrong("reply", OPTIONS, "max_length counts the prompt, too")
def max_length_for_max_new_tokens(model, tokenizer, messages, **generation):
    """max_length counts the prompt's tokens, too."""
    prompt = build(tokenizer, messages).to(model.device)
    if "max_new_tokens" in generation:
        generation["max_length"] = generation.pop("max_new_tokens")
    output = model.generate(**prompt, **generation)
    return text_of(tokenizer, prompt["input_ids"], output)


@wrong("reply", OPTIONS, "Missing: max_new_tokens")
def options_dropped(model, tokenizer, messages, **generation):
    """Takes the options and does nothing with them."""
    prompt = build(tokenizer, messages).to(model.device)
    return text_of(tokenizer, prompt["input_ids"], model.generate(**prompt))


@wrong("reply", OPTIONS, "Nobody asked for generation. Unpack it: **generation")
def options_in_one_argument(model, tokenizer, messages, **generation):
    """Hands the dictionary on without its stars."""
    prompt = build(tokenizer, messages).to(model.device)
    output = model.generate(**prompt, generation=generation)
    return text_of(tokenizer, prompt["input_ids"], output)


@wrong("reply", OPTIONS, "Nobody asked for do_sample")
def always_samples(model, tokenizer, messages, **generation):
    """Switches sampling on where the caller did not."""
    prompt = build(tokenizer, messages).to(model.device)
    generation.setdefault("do_sample", True)
    output = model.generate(**prompt, **generation)
    return text_of(tokenizer, prompt["input_ids"], output)


@wrong("reply", OPTIONS, "Nobody asked for max_new_tokens")
def a_length_of_its_own(model, tokenizer, messages, max_new_tokens=50, **generation):
    """A default that the caller did not choose."""
    prompt = build(tokenizer, messages).to(model.device)
    output = model.generate(**prompt, max_new_tokens=max_new_tokens, **generation)
    return text_of(tokenizer, prompt["input_ids"], output)


@wrong("reply", OPTIONS, "generate's max_new_tokens should give 5000, not 512")
def capped(model, tokenizer, messages, **generation):
    """A limit of its own on what the caller asked for."""
    if "max_new_tokens" in generation:
        generation["max_new_tokens"] = min(generation["max_new_tokens"], 512)
    return reference("reply")(model, tokenizer, messages, **generation)


@wrong("reply", OPTIONS, "Nobody asked for pad_token_id")
def silences_a_warning(model, tokenizer, messages, **generation):
    """Adds an option to be rid of a warning."""
    prompt = build(tokenizer, messages).to(model.device)
    output = model.generate(**prompt, pad_token_id=tokenizer.eos_token_id, **generation)
    return text_of(tokenizer, prompt["input_ids"], output)


@wrong("reply", "test_the_prompt_goes_to_the_device_of_the_model", ".to(model.device)")
def prompt_stays_on_the_cpu(model, tokenizer, messages, **generation):
    """A prompt on the CPU for a model on a GPU."""
    prompt = build(tokenizer, messages)
    output = model.generate(**prompt, **generation)
    return text_of(tokenizer, prompt["input_ids"], output)


@wrong("reply", "test_the_prompt_goes_to_the_device_of_the_model", "its mask is on cpu")
def mask_stays_on_the_cpu(model, tokenizer, messages, **generation):
    """Moves the ids and forgets the mask."""
    prompt = build(tokenizer, messages)
    prompt["input_ids"] = prompt["input_ids"].to(model.device)
    output = model.generate(**prompt, **generation)
    return text_of(tokenizer, prompt["input_ids"], output)


@wrong("reply", SAYS, "says the same with seeds 7 and 8: leave the seed to the caller")
def seeds_inside(model, tokenizer, messages, **generation):
    """The same answer each time, and whoever had set a seed has lost it."""
    torch.manual_seed(0)
    prompt = build(tokenizer, messages).to(model.device)
    output = model.generate(**prompt, **generation)
    return text_of(tokenizer, prompt["input_ids"], output)


@wrong("reply", "test_the_conversation_is_left_alone", "not appended")
def appends_the_answer(model, tokenizer, messages, **generation):
    """Continues the caller's list without being asked."""
    prompt = build(tokenizer, messages).to(model.device)
    output = model.generate(**prompt, **generation)
    text = text_of(tokenizer, prompt["input_ids"], output)
    messages.append({"role": "assistant", "content": text})
    return text


# --- reply_batch ----------------------------------------------------------------------

BATCH = "test_a_batch_of_two_conversations"


def template(tokenizer, conversations, **changes):
    """All prompts, padded on the left, unless `changes` say otherwise."""
    return tokenizer.apply_chat_template(conversations, **READY | LEFT | changes)


def answers_of(model, tokenizer, prompts, **generation):
    output = model.generate(**prompts, **generation)
    new = output[:, prompts["input_ids"].shape[1] :]
    return tokenizer.batch_decode(new, skip_special_tokens=True)


@wrong("reply_batch", BATCH, "Pad on the left")
def the_side_of_the_tokenizer(model, tokenizer, conversations, **generation):
    """Most tokenizers pad on the right, so padding comes between prompt and answer."""
    prompts = template(tokenizer, conversations, tokenizer_kwargs={}).to(model.device)
    return answers_of(model, tokenizer, prompts, **generation)


@wrong("reply_batch", BATCH, "padding looks like text")
def batch_without_a_mask(model, tokenizer, conversations, **generation):
    """generate has to guess what is padding."""
    ids = template(tokenizer, conversations)["input_ids"].to(model.device)
    new = model.generate(input_ids=ids, **generation)[:, ids.shape[1] :]
    return tokenizer.batch_decode(new, skip_special_tokens=True)


@wrong("reply_batch", BATCH, "The mask is 0 where there is padding")
def mask_of_ones(model, tokenizer, conversations, **generation):
    """ones_like says that padding is text."""
    prompts = template(tokenizer, conversations).to(model.device)
    prompts["attention_mask"] = torch.ones_like(prompts["input_ids"])
    return answers_of(model, tokenizer, prompts, **generation)


@wrong("reply_batch", BATCH, "EOS inside a prompt is text")
def batch_mask_from_the_ids(model, tokenizer, conversations, **generation):
    """Where EOS is the pad token, too, it hides the end of each message."""
    prompts = template(tokenizer, conversations).to(model.device)
    mask = (prompts["input_ids"] != tokenizer.pad_token_id).long()
    prompts["attention_mask"] = mask
    return answers_of(model, tokenizer, prompts, **generation)


@wrong(
    "reply_batch",
    BATCH,
    "a call of generate got 1 prompt, not 2: one call for all conversations",
)
def one_by_one(model, tokenizer, conversations, **generation):
    """A call for each conversation: right, and as slow as without a batch."""
    reply = reference("reply")
    return [reply(model, tokenizer, chat, **generation) for chat in conversations]


@wrong("reply_batch", BATCH, "new tokens begin after the padded width")
def cut_at_its_own_length(model, tokenizer, conversations, **generation):
    """Cuts each row at the length that its prompt has without padding."""
    prompts = template(tokenizer, conversations).to(model.device)
    output = model.generate(**prompts, **generation)
    lengths = prompts["attention_mask"].sum(-1)
    rows = [row[n:] for row, n in zip(output, lengths, strict=True)]
    return [tokenizer.decode(row, skip_special_tokens=True) for row in rows]


@wrong("reply_batch", BATCH, "The prompt is still in it")
def batch_echoes_the_prompts(model, tokenizer, conversations, **generation):
    """Decodes all that generate returned."""
    prompts = template(tokenizer, conversations).to(model.device)
    output = model.generate(**prompts, **generation)
    return tokenizer.batch_decode(output, skip_special_tokens=True)


@wrong("reply_batch", BATCH, "skip_special_tokens=True")
def padding_shown(model, tokenizer, conversations, **generation):
    """generate fills up rows that have finished, and users see it."""
    prompts = template(tokenizer, conversations).to(model.device)
    output = model.generate(**prompts, **generation)
    return tokenizer.batch_decode(output[:, prompts["input_ids"].shape[1] :])


@wrong("reply_batch", BATCH, "put it back, or pass the side in the call")
def side_left_changed(model, tokenizer, conversations, **generation):
    """The caller's tokenizer pads on the other side from now on."""
    tokenizer.padding_side = "left"
    prompts = template(tokenizer, conversations, tokenizer_kwargs={}).to(model.device)
    return answers_of(model, tokenizer, prompts, **generation)


@wrong("reply_batch", BATCH, "came with padding_side='left' and left with 'right'")
def put_back_to_the_right(model, tokenizer, conversations, **generation):
    """Puts back the usual side, not the one that was set."""
    tokenizer.padding_side = "left"
    prompts = template(tokenizer, conversations, tokenizer_kwargs={}).to(model.device)
    tokenizer.padding_side = "right"
    return answers_of(model, tokenizer, prompts, **generation)


SIDE = "test_the_tokenizer_is_as_it_was_after_an_error"
SWALLOWED = "the error must not be swallowed"


@wrong("reply_batch", SIDE, "restore it in a `finally`")
def put_back_without_finally(model, tokenizer, conversations, **generation):
    """An error in between, and the tokenizer stays changed."""
    before, tokenizer.padding_side = tokenizer.padding_side, "left"
    prompts = template(tokenizer, conversations, tokenizer_kwargs={}).to(model.device)
    answers = answers_of(model, tokenizer, prompts, **generation)
    tokenizer.padding_side = before
    return answers


@wrong("reply_batch", SIDE, "generate failed (KeyboardInterrupt)")
def side_put_back_after_exceptions(model, tokenizer, conversations, **generation):
    """KeyboardInterrupt is no Exception."""
    before, tokenizer.padding_side = tokenizer.padding_side, "left"
    try:
        prompts = template(tokenizer, conversations, tokenizer_kwargs={})
        texts = answers_of(model, tokenizer, prompts.to(model.device), **generation)
    except Exception:
        tokenizer.padding_side = before
        raise
    tokenizer.padding_side = before
    return texts


@wrong("reply_batch", SIDE, SWALLOWED)
def no_answers_after_an_error(model, tokenizer, conversations, **generation):
    """Nobody learns that the model failed."""
    try:
        prompts = template(tokenizer, conversations).to(model.device)
        return answers_of(model, tokenizer, prompts, **generation)
    except MemoryError:
        return [""] * len(conversations)


@wrong("reply_batch", BATCH, "left with '</s>': it has a pad token, so set no other")
def eos_for_the_pad_token(model, tokenizer, conversations, **generation):
    """A line of many tutorials, which changes the caller's tokenizer."""
    tokenizer.pad_token = tokenizer.eos_token
    prompts = template(tokenizer, conversations).to(model.device)
    return answers_of(model, tokenizer, prompts, **generation)


@wrong("reply_batch", BATCH, "The generation prompt is missing")
def batch_without_a_generation_prompt(model, tokenizer, conversations, **generation):
    """Nobody says whose turn it is."""
    prompts = template(tokenizer, conversations, add_generation_prompt=False)
    return answers_of(model, tokenizer, prompts.to(model.device), **generation)


@wrong(
    "reply_batch", BATCH, "rows of a tensor are equally long: padding, no truncation"
)
def no_padding(model, tokenizer, conversations, **generation):
    """Rows of different lengths do not make a tensor."""
    prompts = template(tokenizer, conversations, padding=False).to(model.device)
    return answers_of(model, tokenizer, prompts, **generation)


@wrong("reply_batch", BATCH, "Only the last message is in it")
def last_messages_only(model, tokenizer, conversations, **generation):
    """The last message of each conversation."""
    prompts = template(tokenizer, [chat[-1:] for chat in conversations])
    return answers_of(model, tokenizer, prompts.to(model.device), **generation)


@wrong("reply_batch", BATCH, "The spaces belong to the text")
def batch_stripped(model, tokenizer, conversations, **generation):
    """strip() changes what the model said."""
    prompts = template(tokenizer, conversations).to(model.device)
    texts = answers_of(model, tokenizer, prompts, **generation)
    return [text.strip() for text in texts]


@wrong("reply_batch", BATCH, "A list of 2 texts is asked for")
def first_answer_only(model, tokenizer, conversations, **generation):
    """Decodes row 0, as for a single prompt."""
    prompts = template(tokenizer, conversations).to(model.device)
    return answers_of(model, tokenizer, prompts, **generation)[0]


@wrong(
    "reply_batch",
    "test_each_answer_is_that_of_the_conversation_alone",
    "in another order",
)
def sorted_by_length(model, tokenizer, conversations, **generation):
    """Sorts to save padding, and gives the answers in the sorted order."""
    ordered = sorted(conversations, key=lambda chat: len(str(chat)))
    prompts = template(tokenizer, ordered).to(model.device)
    return answers_of(model, tokenizer, prompts, **generation)


@wrong("reply_batch", "test_options_of_a_batch_go_through_unchanged", "Missing:")
def batch_options_dropped(model, tokenizer, conversations, **generation):
    """Takes the options and does nothing with them."""
    prompts = template(tokenizer, conversations).to(model.device)
    return answers_of(model, tokenizer, prompts)


@wrong(
    "reply_batch",
    "test_options_of_a_batch_go_through_unchanged",
    "generate's do_sample",
)
def batch_always_greedy(model, tokenizer, conversations, **generation):
    """Makes answers comparable by switching sampling off."""
    prompts = template(tokenizer, conversations).to(model.device)
    return answers_of(model, tokenizer, prompts, **generation | {"do_sample": False})


@wrong("reply_batch", "test_a_batch_of_one", "should give ['yes'], not 'yes'")
def one_without_its_list(model, tokenizer, conversations, **generation):
    """A text for one conversation, a list for several."""
    prompts = template(tokenizer, conversations).to(model.device)
    texts = answers_of(model, tokenizer, prompts, **generation)
    return texts[0] if len(texts) == 1 else texts


MANY = "test_each_of_many_has_its_answer"


@wrong(
    "reply_batch", MANY, "a call of generate got 16 prompts, not 18: one call for all"
)
def at_most_sixteen(model, tokenizer, conversations, **generation):
    """More calls than one, to save memory."""
    answers = []
    for n in range(0, len(conversations), 16):
        prompts = template(tokenizer, conversations[n : n + 16]).to(model.device)
        answers += answers_of(model, tokenizer, prompts, **generation)
    return answers


@wrong("reply_batch", MANY, "An empty answer is one, too")
def empty_answers_dropped(model, tokenizer, conversations, **generation):
    """Then nobody knows which answer belongs to which conversation."""
    prompts = template(tokenizer, conversations).to(model.device)
    return [x for x in answers_of(model, tokenizer, prompts, **generation) if x]


@wrong(
    "reply_batch",
    "test_the_batch_goes_to_the_device_of_the_model",
    ".to(model.device)",
)
def batch_stays_on_the_cpu(model, tokenizer, conversations, **generation):
    """Prompts on the CPU for a model on a GPU."""
    prompts = template(tokenizer, conversations)
    return answers_of(model, tokenizer, prompts, **generation)


@wrong("reply_batch", "test_the_conversations_are_left_alone", "work on copies")
def appends_the_answers(model, tokenizer, conversations, **generation):
    """Continues the caller's lists without being asked."""
    prompts = template(tokenizer, conversations).to(model.device)
    texts = answers_of(model, tokenizer, prompts, **generation)
    for chat, text in zip(conversations, texts, strict=True):
        chat.append({"role": "assistant", "content": text})
    return texts


@wrong("reply_batch", "test_the_conversations_are_left_alone", "work on copies")
def sorts_the_callers_list(model, tokenizer, conversations, **generation):
    """list.sort sorts the caller's own list."""
    before = list(conversations)
    conversations.sort(key=lambda chat: -len(str(chat)))
    prompts = template(tokenizer, conversations).to(model.device)
    texts = answers_of(model, tokenizer, prompts, **generation)
    places = [next(n for n, c in enumerate(conversations) if c is b) for b in before]
    return [texts[n] for n in places]


# --- token_logprobs -------------------------------------------------------------------

LOGPROBS = "test_logprobs_worked_by_hand"
PREFIX = "test_logprobs_agree_with_one_prefix_at_a_time"
NO_GRADIENTS = "test_logprobs_carry_no_gradients_and_are_float32"
SHIFT = "Position t of the logits predicts the token at position t + 1"


def logits_of(model, ids):
    with torch.no_grad():
        return model(ids).logits.float()


def at_tokens(values, tokens):
    """(batch, seq): the entry of each token of (batch, seq, vocab) values."""
    return values.gather(-1, tokens[..., None])[..., 0]


@wrong("token_logprobs", LOGPROBS, SHIFT)
def logits_of_the_token_itself(model, ids):
    """The logits at a position are about the next token, not about this one."""
    return at_tokens(logits_of(model, ids)[:, 1:].log_softmax(-1), ids[:, 1:])


@wrong("token_logprobs", LOGPROBS, SHIFT)
def the_token_before(model, ids):
    """Drops the last of both, which leaves the shift undone."""
    return at_tokens(logits_of(model, ids)[:, :-1].log_softmax(-1), ids[:, :-1])


@wrong("token_logprobs", LOGPROBS, "the first token has no prediction")
def as_long_as_the_text(model, ids):
    """An entry for each token, also for the first."""
    return at_tokens(logits_of(model, ids).log_softmax(-1), ids)


@wrong("token_logprobs", LOGPROBS, "the first token has no prediction")
def zero_for_the_first(model, ids):
    """Fills up to the length of the text."""
    return F.pad(reference("token_logprobs")(model, ids), (1, 0))


@wrong("token_logprobs", LOGPROBS, "These are logits")
def logits_for_logprobs(model, ids):
    """No log_softmax."""
    return at_tokens(logits_of(model, ids)[:, :-1], ids[:, 1:])


@wrong("token_logprobs", LOGPROBS, "That is the probability")
def probabilities(model, ids):
    """softmax without the logarithm."""
    return at_tokens(logits_of(model, ids)[:, :-1].softmax(-1), ids[:, 1:])


@wrong("token_logprobs", LOGPROBS, "Log-probabilities are below 0")
def cross_entropy(model, ids):
    """The loss is minus the log-probability."""
    logits = logits_of(model, ids)[:, :-1]
    return F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")


@wrong("token_logprobs", LOGPROBS, "The natural logarithm is asked for")
def bits(model, ids):
    """log2: bits where nats are asked for."""
    return at_tokens(logits_of(model, ids)[:, :-1].softmax(-1).log2(), ids[:, 1:])


@wrong("token_logprobs", LOGPROBS, "log_softmax in one step")
def log_of_softmax(model, ids):
    """A small probability is rounded to 0, and the logarithm of 0 is -inf."""
    return at_tokens(logits_of(model, ids)[:, :-1].softmax(-1).log(), ids[:, 1:])


@wrong("token_logprobs", LOGPROBS, "log_softmax in one step")
def exp_by_hand(model, ids):
    """exp of a large logit is inf."""
    logits = logits_of(model, ids)[:, :-1]
    return at_tokens(logits - logits.exp().sum(-1, keepdim=True).log(), ids[:, 1:])


@wrong("token_logprobs", LOGPROBS, "gather keeps the dimension")
def a_dimension_is_left(model, ids):
    """gather keeps the dimension along which it looks."""
    logprobs = logits_of(model, ids)[:, :-1].log_softmax(-1)
    return logprobs.gather(-1, ids[:, 1:, None])


@wrong("token_logprobs", LOGPROBS, "should have shape (1, 1), not ()")
def the_sum(model, ids):
    """One number for the whole text."""
    return reference("token_logprobs")(model, ids).sum()


@wrong("token_logprobs", LOGPROBS, "That is the likeliest token")
def of_the_likeliest(model, ids):
    """The best log-probability at each position, whichever token came."""
    return logits_of(model, ids)[:, :-1].log_softmax(-1).amax(-1)


@wrong("token_logprobs", LOGPROBS, "the vocabulary, the last dimension")
def softmax_over_positions(model, ids):
    """dim=1 are the positions."""
    return at_tokens(logits_of(model, ids)[:, :-1].log_softmax(1), ids[:, 1:])


@wrong("token_logprobs", PREFIX, "the vocabulary, the last dimension")
def softmax_over_the_batch(model, ids):
    """dim=0 is the batch."""
    return at_tokens(logits_of(model, ids)[:, :-1].log_softmax(0), ids[:, 1:])


@wrong("token_logprobs", PREFIX, "should have shape (2, 5), not (1, 5)")
def first_row_only(model, ids):
    """Index 0 drops the rest of the batch."""
    logprobs = logits_of(model, ids)[0, :-1].log_softmax(-1)
    return at_tokens(logprobs, ids[0, 1:])[None]


@wrong("token_logprobs", PREFIX, "looked up in every row")
def tokens_of_the_first_row(model, ids):
    """Looks up the first row's tokens in every row."""
    logprobs = logits_of(model, ids)[:, :-1].log_softmax(-1)
    return at_tokens(logprobs, ids[:1, 1:].expand(len(ids), -1))


@wrong("token_logprobs", PREFIX, "should have shape (2, 5), not (2, 2, 5)")
def slice_for_the_batch(model, ids):
    """A slice beside index tensors: every row's logits for every row's tokens."""
    logprobs = logits_of(model, ids)[:, :-1].log_softmax(-1)
    return logprobs[:, torch.arange(ids.shape[1] - 1), ids[:, 1:]]


@wrong("token_logprobs", NO_GRADIENTS, "with torch.no_grad()")
def gradients_left(model, ids):
    """The result holds on to all activations."""
    return at_tokens(model(ids).logits[:, :-1].float().log_softmax(-1), ids[:, 1:])


@wrong("token_logprobs", NO_GRADIENTS, "gradients were off for the whole program")
def gradients_off_for_good(model, ids):
    """Switches gradients off and not on again."""
    torch.set_grad_enabled(False)
    return reference("token_logprobs")(model, ids)


@wrong("token_logprobs", NO_GRADIENTS, "model.float() changes the model itself")
def converts_the_model(model, ids):
    """Converts the caller's model, which then needs twice the memory."""
    return reference("token_logprobs")(model.to(torch.float32), ids)


@wrong("token_logprobs", NO_GRADIENTS, "should be torch.float32, not torch.bfloat16")
def in_the_models_precision(model, ids):
    """Computes and returns bfloat16."""
    with torch.no_grad():
        logits = model(ids).logits[:, :-1]
    return at_tokens(logits.log_softmax(-1), ids[:, 1:])


@wrong("token_logprobs", NO_GRADIENTS, "Make the logits float32 before log_softmax")
def float32_too_late(model, ids):
    """The digits are lost before the conversion."""
    with torch.no_grad():
        logits = model(ids).logits[:, :-1]
    return at_tokens(logits.log_softmax(-1).float(), ids[:, 1:])


# --- attention_map --------------------------------------------------------------------

BACK = "test_the_map_of_each_layer"
ASKED = "test_the_layer_and_the_row_are_the_ones_asked_for"
AS_IT_WAS = "test_the_model_is_as_it_was"
AFTER_ERROR = "test_the_model_is_as_it_was_after_an_error"


def maps_of(model, ids, pick):
    """`pick(output)` of a model in eager mode, which is put back."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            return pick(model(ids, output_attentions=True, output_hidden_states=True))
    finally:
        model.set_attn_implementation(before)


@wrong("attention_map", BACK, "Only eager attention hands out its weights")
def not_eager(model, ids, layer):
    """The default attention keeps its weights to itself."""
    with torch.no_grad():
        return model(ids[:1], output_attentions=True).attentions[layer][0]


@wrong("attention_map", BACK, "output_attentions=True")
def not_asked_for(model, ids, layer):
    """Eager attention alone does not hand the weights out."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            return model(ids[:1]).attentions[layer][0]
    finally:
        model.set_attn_implementation(before)


@wrong(
    "attention_map", BACK, "each row of a head should sum to 1; row 0 of head 0 sums to"
)
def transposed(model, ids, layer):
    """How much a position is looked at, where how much it looks is asked for."""
    return maps_of(model, ids, lambda out: out.attentions[layer][0]).transpose(-1, -2)


@wrong("attention_map", BACK, "not (5, 5). One map for each head")
def mean_over_heads(model, ids, layer):
    """Averages what each head does."""
    return maps_of(model, ids, lambda out: out.attentions[layer][0].mean(0))


@wrong("attention_map", BACK, "not (2, 4, 5, 5). The first row of the batch")
def all_rows(model, ids, layer):
    """The batch dimension is still there."""
    return maps_of(model, ids, lambda out: out.attentions[layer])


@wrong("attention_map", BACK, "not only the last")
def last_position_only(model, ids, layer):
    """Where the last token looks, alone."""
    return maps_of(model, ids, lambda out: out.attentions[layer][0, :, -1])


@wrong("attention_map", BACK, "These are hidden states")
def hidden_states(model, ids, layer):
    """Another of the model's outputs."""
    return maps_of(model, ids, lambda out: out.hidden_states[layer][0])


@wrong("attention_map", BACK, "with torch.no_grad()")
def map_with_gradients(model, ids, layer):
    """The result holds on to all activations."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        return model(ids[:1], output_attentions=True).attentions[layer][0]
    finally:
        model.set_attn_implementation(before)


@wrong("attention_map", BACK, "dropout")
def in_training_mode(model, ids, layer):
    """model.train() switches dropout on, which removes weights at random."""
    model.train()
    try:
        return maps_of(model, ids, lambda out: out.attentions[layer][0])
    finally:
        model.eval()


@wrong("attention_map", ASKED, "That is layer 0: layers are counted from 0")
def counts_from_one(model, ids, layer):
    """Takes layer for a number from 1: layer 0 becomes -1, the last."""
    return maps_of(model, ids, lambda out: out.attentions[layer - 1][0])


@wrong("attention_map", ASKED, "That is layer 2, the last one")
def always_the_last_layer(model, ids, layer):
    """layer is not used."""
    return maps_of(model, ids, lambda out: out.attentions[-1][0])


@wrong("attention_map", ASKED, "the mean of all layers")
def mean_over_layers(model, ids, layer):
    """Averages what each layer does."""
    return maps_of(model, ids, lambda out: torch.stack(out.attentions).mean(0)[0])


@wrong("attention_map", ASKED, "That is the second row")
def the_last_row(model, ids, layer):
    """-1 is the last row of the batch."""
    return maps_of(model, ids, lambda out: out.attentions[layer][-1])


@wrong("attention_map", ASKED, "the mean of the rows")
def mean_over_the_batch(model, ids, layer):
    """Averages the rows of the batch."""
    return maps_of(model, ids, lambda out: out.attentions[layer].mean(0))


@wrong("attention_map", AS_IT_WAS, "was left with 'eager'")
def left_eager(model, ids, layer):
    """Never puts the attention back."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return model(ids[:1], output_attentions=True).attentions[layer][0]


@wrong(
    "attention_map",
    AS_IT_WAS,
    "left with 'sdpa': put back what was set before the call",
)
def back_to_sdpa(model, ids, layer):
    """Puts back the usual attention, not the one that was set."""
    try:
        return maps_of(model, ids, lambda out: out.attentions[layer][0])
    finally:
        model.set_attn_implementation("sdpa")


@wrong(
    "attention_map",
    AS_IT_WAS,
    "left with 'eager': put back what was set before the call",
)
def remembered_too_late(model, ids, layer):
    """Looks what was set after setting it."""
    model.set_attn_implementation("eager")
    return maps_of(model, ids, lambda out: out.attentions[layer][0])


@wrong("attention_map", AS_IT_WAS, "config.output_attentions")
def asks_in_the_config(model, ids, layer):
    """The model hands out attentions at every later call, too."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    model.config.output_attentions = True
    try:
        with torch.no_grad():
            return model(ids[:1]).attentions[layer][0]
    finally:
        model.set_attn_implementation(before)


@wrong("attention_map", AS_IT_WAS, "model.training was False and was left as True")
def leaves_training_mode(model, ids, layer):
    """Switches the model's mode for its own purposes and not back."""
    try:
        return maps_of(model, ids, lambda out: out.attentions[layer][0])
    finally:
        model.train()


@wrong("attention_map", AS_IT_WAS, "gradients were off for the whole program")
def map_switches_gradients_off(model, ids, layer):
    """Switches gradients off and not on again."""
    torch.set_grad_enabled(False)
    return maps_of(model, ids, lambda out: out.attentions[layer][0])


@wrong("attention_map", AFTER_ERROR, "restore it in a `finally`")
def left_eager_after_an_error(model, ids, layer):
    """An error skips the line that puts the attention back."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    with torch.no_grad():
        output = model(ids[:1], output_attentions=True)
    model.set_attn_implementation(before)
    return output.attentions[layer][0]


@wrong("attention_map", AFTER_ERROR, "must not be swallowed")
def swallows_the_error(model, ids, layer):
    """A return in `finally`, or a bare except, hides what went wrong."""
    try:
        return maps_of(model, ids, lambda out: out.attentions[layer][0])
    except Exception:
        return None


@wrong("build_prompt", "test_a_long_conversation_is_not_cut", "no truncation")
def cuts_long_conversations(tokenizer, messages):
    """Truncation loses the end, and with it the generation prompt."""
    return tokenizer.apply_chat_template(
        messages,
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
        truncation=True,
        max_length=512,
    )


@wrong(
    "new_text",
    "test_new_text_worked_by_hand",
    "The text of the prompt '<s>' is empty: cut the ids",
)
def splits_at_the_prompt(tokenizer, input_ids, output_ids):
    """The text of a prompt of special tokens is empty."""
    n = input_ids.shape[1]
    prompt = tokenizer.decode(output_ids[0, :n], skip_special_tokens=True)
    text = tokenizer.decode(output_ids[0], skip_special_tokens=True)
    return text.split(prompt, 1)[1]


@wrong("attention_map", AS_IT_WAS, "model.training was True and was left as False")
def left_in_eval_mode(model, ids, layer):
    """A model in training goes on without dropout."""
    return maps_of(model.eval(), ids, lambda out: out.attentions[layer][0])


@wrong("attention_map", AS_IT_WAS, "instead of requires_grad_(False)")
def frozen(model, ids, layer):
    """No gradients, by switching them off in the model for good."""
    return maps_of(model.requires_grad_(False), ids, lambda o: o.attentions[layer][0])


@wrong("attention_map", AFTER_ERROR, "Ctrl-C came, so the model's call failed")
def put_back_after_exceptions(model, ids, layer):
    """KeyboardInterrupt is no Exception."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            found = model(ids[:1], output_attentions=True).attentions[layer][0]
    except Exception:
        model.set_attn_implementation(before)
        raise
    model.set_attn_implementation(before)
    return found


@wrong(
    "attention_map",
    "test_a_half_precision_model_is_asked_as_it_is",
    "left the model in torch.float32",
)
def turns_the_model_to_float32(model, ids, layer):
    """For better numbers; the caller's model has twice the size from now on."""
    return maps_of(model.float(), ids, lambda out: out.attentions[layer][0])


@wrong(
    "attention_map",
    "test_a_half_precision_model_is_asked_as_it_is",
    "RuntimeError",
)
def into_a_float32_tensor(model, ids, layer):
    """An index_copy_ between dtypes is an error; models in float32 do not show it."""
    found = maps_of(model, ids, lambda out: out.attentions[layer][0])
    made = torch.empty(found.shape, dtype=torch.float32)
    return made.index_copy_(0, torch.arange(len(found)), found)

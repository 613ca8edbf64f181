"""Right answers to lesson 02 in another style: each must pass all checks."""

import copy

import torch
import torch.nn.functional as F
from transformers import BatchEncoding, GenerationConfig

from course.making.answers import reference, right

build = reference("build_prompt")
text_of = reference("new_text")


# --- build_prompt ---------------------------------------------------------------------


@right("build_prompt")
def text_first_without_special_tokens(tokenizer, messages):
    """The template's text, tokenised without another BOS."""
    text = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    return tokenizer(text, add_special_tokens=False, return_tensors="pt")


@right("build_prompt")
def a_batch_of_one_conversation(tokenizer, messages):
    """A list of one conversation, with padding that has nothing to do."""
    return tokenizer.apply_chat_template(
        [messages], add_generation_prompt=True, padding=True, return_tensors="pt"
    )


@right("build_prompt")
def mask_by_hand(tokenizer, messages):
    """Ids alone, and ones for a single prompt, which has no padding."""
    ids = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})


@right("build_prompt")
def tensors_from_lists(tokenizer, messages):
    """Lists first; tensors and the batch dimension afterwards."""
    lists = tokenizer.apply_chat_template(
        [dict(m) for m in messages], add_generation_prompt=True, return_dict=True
    )
    return lists.convert_to_tensors("pt", prepend_batch_axis=True)


@right("build_prompt")
def lists_by_encode(tokenizer, messages):
    """encode gives a plain list, and torch.tensor the rest."""
    text = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False
    )
    ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
    mask = torch.ones(ids.shape, dtype=torch.int64)
    return BatchEncoding({"input_ids": ids, "attention_mask": mask})


# --- new_text -------------------------------------------------------------------------


@right("new_text")
def last_tokens(tokenizer, input_ids, output_ids):
    """Counts the new tokens; -0: would be all of them, so from the front."""
    new = output_ids.size(1) - input_ids.size(1)
    ids = output_ids[0].tolist()
    return tokenizer.decode(ids[len(ids) - new :], skip_special_tokens=True)


@right("new_text")
def by_batch_decode(tokenizer, input_ids, output_ids):
    """The old name for decoding several rows, and its only text."""
    new = output_ids[:, input_ids.shape[-1] :]
    return tokenizer.batch_decode(new, skip_special_tokens=True)[0]


@right("new_text")
def unpacked(tokenizer, input_ids, output_ids):
    """The batch has one row; len of a row is its number of tokens."""
    (prompt,), (output,) = input_ids, output_ids
    return tokenizer.decode(output[len(prompt) :], skip_special_tokens=True)


@right("new_text")
def special_ids_filtered(tokenizer, input_ids, output_ids):
    """Drops the special tokens' ids before decoding."""
    special = set(tokenizer.all_special_ids)
    new = output_ids[0, input_ids.shape[1] :].tolist()
    return tokenizer.decode([token for token in new if token not in special])


@right("new_text")
def as_the_pipeline_does(tokenizer, input_ids, output_ids):
    """Decodes both alike and cuts the text, as the library's own pipeline does."""
    prompt = tokenizer.decode(input_ids[0], skip_special_tokens=True)
    return tokenizer.decode(output_ids[0], skip_special_tokens=True)[len(prompt) :]


@right("new_text")
def by_tensor_split(tokenizer, input_ids, output_ids):
    """Splits the row in two."""
    _, new = output_ids[0].tensor_split([input_ids.shape[1]])
    tokens = tokenizer.convert_ids_to_tokens(new.tolist(), skip_special_tokens=True)
    return tokenizer.convert_tokens_to_string(tokens) if tokens else ""


# --- reply ----------------------------------------------------------------------------


@right("reply")
def in_one_expression(model, tokenizer, messages, **generation):
    """inputs= for input_ids, and the mask by name."""
    prompt = build(tokenizer, messages)
    ids = prompt["input_ids"].to(model.device)
    mask = prompt["attention_mask"].to(model.device)
    output = model.generate(ids, attention_mask=mask, **generation)
    return text_of(tokenizer, ids, output)


@right("reply")
def mask_of_ones_like(model, tokenizer, messages, **generation):
    """A single prompt has no padding, so ones are its mask."""
    ids = build(tokenizer, messages).input_ids.to(model.device)
    output = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), **generation
    )
    return text_of(tokenizer, ids, output)


@right("reply")
def in_inference_mode(model, tokenizer, messages, **generation):
    """Gradients off around all, although generate does that itself."""
    with torch.inference_mode():
        prompt = build(tokenizer, messages).to(model.device)
        output = model.generate(**{**prompt, **generation})
    new = output[0][prompt["input_ids"].shape[-1] :]
    return tokenizer.decode(new, skip_special_tokens=True)


@right("reply")
def without_the_other_exercises(model, tokenizer, messages, **generation):
    """All steps written out, through the template's text."""
    text = tokenizer.apply_chat_template(
        list(messages), add_generation_prompt=True, tokenize=False
    )
    inputs = tokenizer([text], add_special_tokens=False, return_tensors="pt")
    inputs = {name: values.to(model.device) for name, values in inputs.items()}
    (output,) = model.generate(**inputs, **generation)
    return tokenizer.decode(
        output[inputs["input_ids"].shape[1] :], skip_special_tokens=True
    )


@right("reply")
def a_batch_of_one(model, tokenizer, messages, **generation):
    """The only answer of a batch."""
    return reference("reply_batch")(model, tokenizer, [messages], **generation)[0]


@right("reply")
def prompt_decoded_first(model, tokenizer, messages, **generation):
    """As the library's pipeline: the prompt's text is cut off the whole text."""
    model.eval()
    prompt = build(tokenizer, messages).to(next(model.parameters()).device)
    before = tokenizer.decode(prompt["input_ids"][0], skip_special_tokens=True)
    output = model.generate(**prompt, **generation)
    return tokenizer.decode(output[0], skip_special_tokens=True)[len(before) :]


# --- reply_batch ----------------------------------------------------------------------


@right("reply_batch")
def side_set_and_put_back(model, tokenizer, conversations, **generation):
    """Changes the tokenizer for the time of the call."""
    before = tokenizer.padding_side
    tokenizer.padding_side = "left"
    try:
        prompts = tokenizer.apply_chat_template(
            conversations,
            add_generation_prompt=True,
            padding="longest",
            return_tensors="pt",
            return_dict=True,
        ).to(model.device)
    finally:
        tokenizer.padding_side = before
    output = model.generate(**prompts, **generation)
    new = output[:, prompts["input_ids"].shape[1] :]
    return tokenizer.batch_decode(new, skip_special_tokens=True)


@right("reply_batch")
def a_copy_of_the_tokenizer(model, tokenizer, conversations, **generation):
    """A copy pads on the left, whatever the caller's does."""
    mine = copy.deepcopy(tokenizer)
    mine.padding_side = "left"
    texts = [
        mine.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        for chat in conversations
    ]
    batch = mine(texts, add_special_tokens=False, padding=True, return_tensors="pt")
    output = model.generate(**batch.to(model.device), **generation)
    start = batch["input_ids"].shape[1]
    return [mine.decode(row[start:], skip_special_tokens=True) for row in output]


@right("reply_batch")
def padded_by_hand(model, tokenizer, conversations, **generation):
    """Each prompt by itself, and zeros in front of the mask."""
    prompts = [build(tokenizer, chat)["input_ids"][0] for chat in conversations]
    width = max(map(len, prompts))
    pads = [width - len(prompt) for prompt in prompts]
    pad_id = tokenizer.pad_token_id
    ids = torch.stack(
        [F.pad(x, (n, 0), value=pad_id) for x, n in zip(prompts, pads, strict=True)]
    ).to(model.device)
    mask = (torch.arange(width) >= torch.tensor(pads)[:, None]).long()
    output = model.generate(ids, attention_mask=mask.to(model.device), **generation)
    return tokenizer.decode(output[:, width:], skip_special_tokens=True)


@right("reply_batch")
def by_tokenizer_pad(model, tokenizer, conversations, **generation):
    """tokenizer.pad puts single prompts together."""
    rows = [
        tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_dict=True
        )
        for chat in conversations
    ]
    batch = tokenizer.pad(
        {key: [row[key] for row in rows] for key in ("input_ids", "attention_mask")},
        padding_side="left",
        return_tensors="pt",
    ).to(model.device)
    output = model.generate(**batch, **generation)
    ids = batch["input_ids"]
    return [text_of(tokenizer, ids[:1], row[None]) for row in output]


@right("reply_batch")
def side_in_the_call(model, tokenizer, conversations, **generation):
    """The texts first; the side is an argument of the tokenizer's call."""
    texts = tokenizer.apply_chat_template(
        conversations, add_generation_prompt=True, tokenize=False
    )
    batch = tokenizer(
        texts,
        add_special_tokens=False,
        padding=True,
        padding_side="left",
        return_tensors="pt",
    ).to(model.device)
    with torch.no_grad():
        output = model.generate(
            inputs=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            **generation,
        )
    width = batch["input_ids"].size(1)
    return list(tokenizer.batch_decode(output[:, width:], skip_special_tokens=True))


@right("reply_batch")
def longest_first(model, tokenizer, conversations, **generation):
    """Sorts the prompts by length and puts the texts back in order."""
    prompts = [build(tokenizer, chat)["input_ids"].shape[1] for chat in conversations]
    order = sorted(range(len(prompts)), key=lambda n: -prompts[n])
    ordered = [conversations[n] for n in order]
    texts = reference("reply_batch")(model, tokenizer, ordered, **generation)
    return [text for _, text in sorted(zip(order, texts, strict=True))]


# --- token_logprobs -------------------------------------------------------------------


@right("token_logprobs")
def by_cross_entropy(model, ids):
    """The loss of each token, with its sign turned."""
    with torch.no_grad():
        logits = model(ids).logits[:, :-1].float()
    return -F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")


@right("token_logprobs")
@torch.no_grad()
def by_logsumexp(model, ids):
    """The token's logit minus the logsumexp, without all log-probabilities."""
    logits = model(ids).logits.float()[:, :-1]
    chosen = logits.gather(-1, ids[:, 1:].unsqueeze(-1)).squeeze(-1)
    return chosen - logits.logsumexp(dim=-1)


@right("token_logprobs")
@torch.inference_mode()
def without_the_last_token(model, ids):
    """The model is not given the last token, which predicts nothing here."""
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    logprobs = F.log_softmax(logits, dim=-1, dtype=torch.float32)
    return torch.take_along_dim(logprobs, ids[:, 1:, None], dim=2).squeeze(2)


@right("token_logprobs")
def in_float64(model, ids):
    """Double precision inside, float32 at the end."""
    with torch.no_grad():
        logprobs = model(ids).logits.double().log_softmax(-1)
    row = torch.arange(len(ids))[:, None]
    place = torch.arange(ids.shape[1] - 1)
    return logprobs[row, place, ids[:, 1:]].float()


@right("token_logprobs")
def in_loops(model, ids):
    """A row and a prefix at a time."""
    out = torch.zeros(len(ids), ids.shape[1] - 1)
    for b, row in enumerate(ids):
        for t in range(len(row) - 1):
            with torch.no_grad():
                logits = model(row[None, : t + 1]).logits[0, -1].float()
            out[b, t] = torch.log_softmax(logits, 0)[row[t + 1]]
    return out


@right("token_logprobs")
@torch.no_grad()
def shifted_by_hand(model, ids):
    """softmax by hand, with the largest logit taken off first."""
    logits = model(ids).logits.float()[..., :-1, :]
    logits = logits - logits.max(dim=-1, keepdim=True).values
    one_hot = F.one_hot(ids[..., 1:], logits.shape[-1])
    return (logits * one_hot).sum(-1) - logits.exp().sum(-1).log()


@right("token_logprobs")
def by_a_distribution(model, ids):
    """torch.distributions knows log_prob."""
    with torch.no_grad():
        logits = model(ids).logits[:, :-1].to(torch.float32)
        return torch.distributions.Categorical(logits=logits).log_prob(ids[:, 1:])


# --- attention_map --------------------------------------------------------------------


@right("attention_map")
def all_rows_then_the_first(model, ids, layer):
    """The whole batch through the model."""
    before = model.config._attn_implementation
    try:
        model.set_attn_implementation("eager")
        with torch.inference_mode():
            attentions = model(ids, output_attentions=True).attentions
        return attentions[layer][0, ...]
    finally:
        model.set_attn_implementation(before)


@right("attention_map")
def a_copy_of_the_model(model, ids, layer):
    """A copy may be changed at will."""
    mine = copy.deepcopy(model)
    mine.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = mine(ids[:1], output_attentions=True).attentions
    return attentions[layer].squeeze(0)


@right("attention_map")
def in_float32(model, ids, layer):
    """Wider numbers than the model's own."""
    mine = copy.deepcopy(model).float()
    mine.set_attn_implementation("eager")
    with torch.no_grad():
        return mine(ids[:1], output_attentions=True).attentions[layer][0]


@right("attention_map")
@torch.no_grad()
def put_back_by_except(model, ids, layer):
    """Puts it back on both ways out, without a `finally`."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        output = model(ids[0].unsqueeze(0), output_attentions=True, return_dict=True)
    except BaseException:
        model.set_attn_implementation(before)
        raise
    model.set_attn_implementation(before)
    return output["attentions"][layer][0]


@right("attention_map")
def detached(model, ids, layer):
    """Gradients cut off at the end, in a copy of its own."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        output = model(ids[:1], output_attentions=True)
    finally:
        model.set_attn_implementation(before)
    return output.attentions[layer][0].detach().clone()


@right("attention_map")
def by_a_hook(model, ids, layer):
    """Catches what the layer's attention module hands back."""
    modules = [m for m in model.modules() if type(m).__name__.endswith("Attention")]
    caught = []
    hook = modules[layer].register_forward_hook(lambda m, i, out: caught.append(out[1]))
    before = model.config._attn_implementation
    try:
        model.set_attn_implementation("eager")
        with torch.no_grad():
            model(ids[:1])
    finally:
        hook.remove()
        model.set_attn_implementation(before)
    return caught[0][0]


@right("attention_map")
def through_generate(model, ids, layer):
    """The prefill of one generate step has the same weights."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        output = model.generate(
            ids[:1],
            attention_mask=torch.ones_like(ids[:1]),
            generation_config=GenerationConfig(
                max_new_tokens=1, return_dict_in_generate=True, output_attentions=True
            ),
        )
    finally:
        model.set_attn_implementation(before)
    return output.attentions[0][layer][0]

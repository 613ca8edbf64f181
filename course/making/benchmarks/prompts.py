"""The texts that the benchmark has continued."""

STORY = (
    "The lighthouse at the end of the long grey harbour wall had been dark for eleven "
    "years when the town council, after many arguments about money and one about "
    "seagulls, decided to light it again. Nobody could find the key. The last keeper "
    "had moved inland to live with his daughter, and he wrote back on a postcard with "
    "a picture of a cow: the key hangs where it always hung. So a small party of "
    "people went out at low tide with torches and a ladder. There were the mayor, two "
    "girls from the school, a locksmith who had never picked a lock older than "
    "himself, and a dog. The door was green with weed. The key hung on a nail beside "
    "it, under a slate, dry and bright as the day it was made."
)
CODE = """def add_item(inventory, name, count):
    if name in inventory:
        inventory[name] += count
    else:
        inventory[name] = count
    return inventory

def remove_item(inventory, name, count):
    if name not in inventory:
        raise KeyError(name)
    inventory[name] -= count
    if inventory[name] <= 0:
        del inventory[name]
    return inventory
"""
# What prompt lookup is measured on: how much of the answer stands in the prompt?
KINDS = {
    "copying": f"Repeat the following text exactly, word for word:\n\n{STORY}",
    "code edit": f"Here is some Python code:\n\n{CODE}\n"
    "Write the same code again, but rename inventory to stock.",
    "summary": f"Summarize the following story in a few sentences:\n\n{STORY}",
    "open": "Tell me a story about a robot who learns to paint.",
}
QUESTIONS = (
    "Explain how a refrigerator works, step by step.",
    "Write a Python function that checks whether a number is prime, with comments.",
    "What are the causes of the First World War? Answer in detail.",
    "Give me ten ideas for a birthday party and describe each of them.",
    "Write a letter to a friend about a holiday in the mountains.",
    "Translate into French: The weather is nice today and we go to the beach.",
    "List the planets of the solar system with one fact about each.",
    "Compare cats and dogs as pets, in a table.",
)
PLAIN = (
    "The history of the city begins in the year",
    "import numpy as np\n\nclass Matrix:\n",
    "Once upon a time",
    STORY,
)
LENGTH = 64  # tokens of a prompt of the decode rows


def tokenizer():
    from transformers import AutoTokenizer

    from tiny_models.weights import default_model

    return AutoTokenizer.from_pretrained(default_model())


def windows(encode, batch: int) -> list[list[int]]:
    """Prompts of LENGTH tokens; the first is always the same."""
    ids = encode(STORY * 8)["input_ids"]
    return [ids[i * 3 : i * 3 + LENGTH] for i in range(batch)]


def chat(encode, text: str) -> list[int]:
    """The prompt of a chat of one message."""
    messages = [{"role": "user", "content": text}]
    options = {"add_generation_prompt": True, "return_dict": True}
    return encode.apply_chat_template(messages, **options)["input_ids"]


def sixteen(encode) -> list[list[int]]:
    """Chat, code, copying, plain text: what the same tokens are proven on."""
    asked = [chat(encode, text) for text in (*KINDS.values(), *QUESTIONS)]
    return [*asked, *(encode(text)["input_ids"] for text in PLAIN)]

"""Writes tiny chat and reward models with tokenizers, and what `transformers` reads and writes with them.

Run by hand where torch and transformers are installed: `python tests/rlhf/make_reference_texts.py`. What it writes into
`reference_texts/` is committed, so that the tests need neither. With peft installed, it writes an adapter too.
"""

import itertools
import json
import pathlib
import shutil
import sys

import numpy as np
import peft
import tokenizers
import torch
import transformers
from make_reference_models import randomise

HERE = pathlib.Path(__file__).resolve().parent / "reference_texts"
CORPUS = [
    "the film is good",
    "a good film, a late film",
    "the film was late and the cast is good. The end",
    "été: ça va",
]
MARKS = ["<|begin|>", "<|pad|>", "<|turn|>", "<|end|>", "<|stop|>"]
TEMPLATE = r"""{{ bos_token }}{%- for message in messages %}
    {{- '<|turn|>' + message['role'] + '\n' + message['content'] | trim + eos_token + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|turn|>assistant\n' }}
{%- endif %}
"""
REWARD_TEMPLATE = r"""{{ bos_token }}{% for message in messages %}
{% generation %}{{ message['role'] + ':
' + message['content'] }}{{ eos_token }}{% endgeneration %}
{% endfor %}{{ '<|stop|>' }}"""
LENGTH, TEMPERATURE, TOP_P = 24, 1.3, 0.9
PROMPTS = ["the film", " is  the cast good?\n", "a late film, a good cast and the end of the film"]
CONVERSATION = [
    {"role": "system", "content": "good"},
    {"role": "user", "content": "the film?"},
    {"role": "assistant", "content": "late"},
    {"role": "user", "content": "the cast?"},
]


def tokenizer(marks=MARKS):
    """Byte-level tokens with a few merges, a beginning that the tokenizer's own file adds, and marks of turns."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    letters = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=280, initial_alphabet=letters, show_progress=False)
    made.train_from_iterator(CORPUS, trainer)
    made.add_special_tokens(marks)
    begin = made.token_to_id("<|begin|>")
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", begin)]
    )
    return made


def wrapped(made, template=None, **fields):
    """The tokenizer as transformers has it."""
    names = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "pad_token": "<|pad|>"}
    found = transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names, **fields)
    found.chat_template = template
    return found


def shape(words, **fields):
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    ids = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    rest = {"intermediate_size": 24, "max_position_embeddings": 160, "tie_word_embeddings": False}
    return transformers.LlamaConfig(**small, **ids, **rest, **({"vocab_size": len(words)} | fields))


class Noise(transformers.LogitsProcessor):
    """Adds a row of noise to each token's scores: with Gumbel noise the most likely token is a sample."""

    def __init__(self, rows, start):
        self.rows, self.start = torch.tensor(rows), start

    def __call__(self, input_ids, scores):
        return scores + self.rows[input_ids.shape[1] - self.start]


def noise(i, vocabulary):
    """Of prompt i, (T, V); the test draws the same."""
    return np.random.default_rng(i).gumbel(size=(LENGTH, vocabulary)).astype(np.float32)


def answers(model, words, ids, i, hidden, stop=None):
    """What transformers writes after some tokens: the most likely text, and a sample."""
    whole = torch.tensor(ids)[None]
    warp = [
        transformers.TemperatureLogitsWarper(TEMPERATURE),
        transformers.TopPLogitsWarper(TOP_P),
        Noise(noise(i, model.config.vocab_size), len(ids)),
    ]
    found = {}
    for name, processors in (("greedy", []), ("sampled", warp)):
        written = model.generate(
            whole,
            attention_mask=torch.ones_like(whole),
            max_new_tokens=LENGTH,
            do_sample=False,
            suppress_tokens=hidden,
            logits_processor=transformers.LogitsProcessorList(processors),
            stop_strings=stop,
            tokenizer=words,
        )
        found[name] = written[0, len(ids) :].tolist()
    return found


def between(words, rows):
    """Strings that end one token of some texts and begin the next."""
    found = []
    for row in rows:
        pieces = [words.decode([i]) for i in row]
        pairs = [one[-1:] + two[:1] for one, two in itertools.pairwise(pieces[4:])]
        found += [pair for pair in pairs if len(pair) == 2 and pair.isascii() and pair.isprintable()][:1]
    return found


def write(home):
    made = tokenizer()
    chat, plain = wrapped(made, TEMPLATE), wrapped(made)
    torch.manual_seed(0)
    model = randomise(transformers.LlamaForCausalLM(shape(chat)), 3)
    ends = [made.token_to_id("<|end|>"), made.token_to_id("<|stop|>")]
    with torch.no_grad():  # so that some texts end
        model.lm_head.weight[ends] *= 1.4
    model.generation_config.eos_token_id = ends
    hidden = [made.token_to_id(mark) for mark in MARKS if made.token_to_id(mark) not in ends]
    found = {"temperature": TEMPERATURE, "top_p": TOP_P, "length": LENGTH, "chat": [], "plain": []}
    for i, prompt in enumerate([*PROMPTS, CONVERSATION]):
        messages = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
        ids = chat.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        found["chat"].append({"given": prompt, "prompt": ids} | answers(model, chat, ids, i, hidden))
        if isinstance(prompt, str):
            ids = plain(prompt)["input_ids"]
            found["plain"].append({"given": prompt, "prompt": ids} | answers(model, plain, ids, i, hidden))
    found["stop"] = [*between(chat, [row[name] for row in found["chat"] for name in ("greedy", "sampled")]), "no such"]
    for i, row in enumerate(found["chat"]):
        row["stopped"] = answers(model, chat, row["prompt"], i, hidden, found["stop"])
    model.save_pretrained(home / "chat")
    chat.save_pretrained(home / "chat")

    # A reward of the same words, with marks of its own and rows that pad its table.
    reads = wrapped(tokenizer(["<|stop|>", "<|pad|>", "<|end|>", "<|begin|>"]), REWARD_TEMPLATE)
    fields = {"num_labels": 1, "vocab_size": len(reads) + 3}
    reward = randomise(transformers.LlamaForSequenceClassification(shape(reads, **fields)), 4)
    found["rewards"] = []
    for prompt in [*PROMPTS, CONVERSATION]:
        messages = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
        for answer in ("a good film", " late"):
            whole = [*messages, {"role": "assistant", "content": answer}]
            ids = reads.apply_chat_template(whole, return_dict=False)
            with torch.no_grad():
                value = reward(torch.tensor(ids)[None]).logits[0, 0].item()
            found["rewards"].append({"given": prompt, "answer": answer, "ids": ids, "reward": value})
    reward.save_pretrained(home / "reward")
    reads.save_pretrained(home / "reward")

    # An adapter of the reward model's trunk, with a score of its own.
    tuned = transformers.LlamaForSequenceClassification.from_pretrained(home / "reward")
    plan = peft.LoraConfig(task_type="SEQ_CLS", r=2, lora_alpha=3, target_modules=["q_proj", "down_proj"])
    tuned = randomise(peft.get_peft_model(tuned, plan), 5)
    base = {k.replace("q_proj.", "q_proj.base_layer.").replace("down_proj.", "down_proj.base_layer."): v
            for k, v in reward.state_dict().items() if not k.startswith("score")}  # fmt: skip
    missing = tuned.base_model.model.load_state_dict(base, strict=False)
    assert not missing.unexpected_keys, missing
    tuned.save_pretrained(home / "adapter")
    settings = home / "adapter" / "adapter_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"base_model_name_or_path": "reward"}, indent=1))
    (home / "adapter" / "README.md").unlink(missing_ok=True)
    ids = found["rewards"][0]["ids"]
    with torch.no_grad():
        found["adapter"] = {"ids": ids, "reward": tuned(torch.tensor(ids)[None]).logits[0, 0].item()}
    (home / "reference.json").write_text(json.dumps(found, indent=1) + "\n")


def main(home=HERE):
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    write(home)
    for path in home.rglob("*.safetensors"):
        path.chmod(0o644)
    total = sum(path.stat().st_size for path in home.rglob("*") if path.is_file())
    print(f"{total / 1e3:.0f} kB in {home}", file=sys.stderr)


if __name__ == "__main__":
    main()

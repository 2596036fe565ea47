"""A policy and self-edits for an outer SFT, a plain training loop to compare it with, and what it shows to the model."""

import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.tiny_models import EOS_ID, tiny_llama, tiny_tokenizer
from seal_hf.records.schema import SelectedSelfEdit


IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])


def written(prompt, text, finished=True):
    ids = tiny_tokenizer()(text)["input_ids"] + [EOS_ID] * finished
    return SelectedSelfEdit(prompt, text, "0", 0, 1.0, ids)


PLAIN = [written(f"Passage {i}: ", f"fact {i} " * (i + 1)) for i in range(5)]
CHAT = [written([{"role": "user", "content": edit.prompt}], edit.completion) for edit in PLAIN]


def new_policy(dropout=0.0, **overrides):
    """A model with a fresh policy adapter on every linear layer: every B is zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        config = LoraConfig(r=3, lora_alpha=6, lora_dropout=dropout, target_modules="all-linear")
        return get_peft_model(tiny_llama(**overrides), config).eval()


def values(model, lora=True):
    """A copy of the adapter's values, or of everything else's."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items() if ("lora_" in name) is lora}


def same(one, other):
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


class OperationCount(TorchDispatchMode):
    """Counts tensor operations: what the speed of a forward pass is made of, without a clock."""

    def __enter__(self):
        self.count = 0
        return super().__enter__()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def forward_pass(model):
    """Logits and number of operations, with the adapter and without."""
    found = []
    with torch.no_grad():
        with OperationCount() as operations:
            logits = model(IDS).logits
        found.append((logits, operations.count))
        with model.disable_adapter(), OperationCount() as operations:
            logits = model(IDS).logits
        found.append((logits, operations.count))
    return found


def reference_fit(model, rows, steps, learning_rate, max_grad_norm):
    """
    AdamW with a linear schedule on the mean loss of a step's completion tokens.

    `rows` are (input ids, number of prompt tokens); `steps` lists the rows of each step.
    """
    parameters = [parameter for name, parameter in model.named_parameters() if "lora_" in name]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    losses, norms = [], []
    for number, step in enumerate(steps):
        optimizer.param_groups[0]["lr"] = learning_rate * (1 - number / len(steps))
        optimizer.zero_grad()
        total, num_labels = 0.0, sum(len(rows[i][0]) - rows[i][1] for i in step)
        for i in step:
            ids, prompt_length = torch.tensor(rows[i][0]), rows[i][1]
            logits = model(ids[None]).logits[0, prompt_length - 1 : -1].float()
            total = total + torch.nn.functional.cross_entropy(logits, ids[prompt_length:], reduction="sum")
        (total / num_labels).backward()
        losses.append(total.item() / num_labels)
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm).item())
        optimizer.step()
    return losses, norms


def tokenized(tokenizer, edit):
    """Ids of prompt and completion together, and the number of those of the prompt."""
    prompt = edit.prompt if isinstance(edit.prompt, str) else f"[user] {edit.prompt[0]['content']}\n[assistant] "
    return tokenizer(f"{prompt}{edit.completion}</s>")["input_ids"], len(tokenizer(prompt)["input_ids"])


class RowsSeen:
    """The rows that a fit with one row per pass shows to the model, by their place in `rows`."""

    def __init__(self, model, rows):
        self.places, self._ids = [], [ids for ids, _ in rows]
        model.get_input_embeddings().register_forward_pre_hook(self._note)

    def _note(self, module, inputs):
        ids = inputs[0][0].tolist()
        self.places += [self._ids.index(ids)] if ids in self._ids else []

    def steps(self, sft_batch_size):
        num_rows = len(self._ids)
        epochs = [self.places[i : i + num_rows] for i in range(0, len(self.places), num_rows)]
        return [epoch[i : i + sft_batch_size] for epoch in epochs for i in range(0, num_rows, sft_batch_size)]


def state(model, tokenizer):
    """What a trainer might change, in a form that can be compared."""
    base = model.get_base_model()
    return {
        "modules": {
            name: {
                key: (type(value), dict(value)) if isinstance(value, dict) else value
                for key, value in vars(module).items()
            }
            for name, module in model.named_modules()
        },
        "training": {name: module.training for name, module in model.named_modules()},
        "parameters": {
            name: (id(value), value.requires_grad, value.dtype, value.grad) for name, value in model.named_parameters()
        },
        "config": base.config.to_dict(),
        "generation": base.generation_config.to_dict(),
        "checkpointing": base.is_gradient_checkpointing,
        "tokenizer": (
            *(tokenizer.pad_token, tokenizer.eos_token, len(tokenizer), tokenizer.padding_side),
            *(tokenizer.truncation_side, tokenizer.chat_template, tokenizer.special_tokens_map),
        ),
    }


class Trained:
    """The labels of every row with any, by its ids, that a fit shows to the model."""

    def __init__(self, model):
        self.labels = {}
        model.get_base_model().register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module, args, kwargs):
        for ids, mask, labels in zip(kwargs["input_ids"], kwargs["attention_mask"], kwargs["labels"], strict=True):
            if (labels != -100).any():
                self.labels[tuple(ids[mask == 1].tolist())] = labels[mask == 1].tolist()

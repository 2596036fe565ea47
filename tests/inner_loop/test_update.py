import logging
import math
import re
from collections import Counter
from dataclasses import replace

import pytest
import torch
from transformers import get_scheduler

from helpers.tiny_models import BOS_ID, EOS_ID, UNK_ID, tiny_tokenizer
from seal_hf.inner_loop.update import (
    SCHEDULES,
    InnerLoopConfig,
    InnerUpdate,
    TrainingSequence,
    learning_rate,
    tokenize_self_edit,
    training_order,
)
from seal_hf.self_edit import SelfEdit, TrainingExample


def update_of_lengths(*lengths: int, **options) -> InnerUpdate:
    return InnerUpdate(tuple(TrainingSequence(tuple(range(n))) for n in lengths), InnerLoopConfig(**options))


def self_edit(*sequences: tuple[str, str], **overrides) -> SelfEdit:
    return SelfEdit("passage", "completion", tuple(TrainingExample(*one) for one in sequences), overrides)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("num_steps", [1, 2, 3, 10, 37])
@pytest.mark.parametrize("warmup_steps", [0, 0.03, 0.1, 0.5, 0.99, 1, 4.0, 11])
def test_learning_rate_equals_get_scheduler(schedule, num_steps, warmup_steps):
    config = InnerLoopConfig(learning_rate=3e-4, lr_scheduler_type=schedule, warmup_steps=warmup_steps)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=config.learning_rate)
    scheduler = get_scheduler(
        # "constant" knows no warm-up in transformers; with none the two are equal.
        schedule.replace("constant", "constant_with_warmup"),
        optimizer,
        num_warmup_steps=int(warmup_steps) if warmup_steps >= 1 else math.ceil(num_steps * warmup_steps),
        num_training_steps=num_steps,
    )
    expected = []
    for _ in range(num_steps):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    actual = [learning_rate(step, num_steps, config) for step in range(num_steps)]
    assert actual == pytest.approx(expected, rel=1e-12, abs=1e-18)


def test_learning_rate_by_hand():
    config = InnerLoopConfig(learning_rate=0.8, warmup_steps=0.5)
    assert [learning_rate(step, 8, config) for step in range(8)] == pytest.approx(
        [0, 0.2, 0.4, 0.6, 0.8, 0.6, 0.4, 0.2]
    )
    in_steps = InnerLoopConfig(learning_rate=0.8, warmup_steps=4)
    assert [learning_rate(step, 8, in_steps) for step in range(8)] == [
        learning_rate(step, 8, config) for step in range(8)
    ]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("num_train_epochs", 0),
        ("num_train_epochs", 1.5),
        ("num_train_epochs", True),
        ("batch_size", 0),
        ("batch_size", "2"),
        ("max_length", 1),
        ("learning_rate", -1e-3),
        ("learning_rate", 0),
        ("learning_rate", math.nan),
        ("learning_rate", math.inf),
        ("learning_rate", 1e31),
        ("learning_rate", 10**400),
        ("learning_rate", "1e-3"),
        ("learning_rate", None),
        ("warmup_steps", -0.1),
        ("warmup_steps", 1.1),
        ("warmup_steps", math.inf),
        ("warmup_steps", True),
        ("max_grad_norm", -1),
        ("max_grad_norm", math.nan),
        ("lr_scheduler_type", "polynomial"),
        ("lr_scheduler_type", None),
        ("add_eos_token", None),
        ("add_eos_token", 1),
    ],
)
def test_invalid_options_are_named(option, value):
    message = re.escape(f"{option}={value!r} must be")
    with pytest.raises(ValueError, match=message):
        InnerLoopConfig(**{option: value})
    with pytest.raises(ValueError, match=message):
        InnerLoopConfig().override({option: value})
    with pytest.raises(ValueError, match=message):
        tokenize_self_edit(self_edit(("", "text"), **{option: value}), tiny_tokenizer(), InnerLoopConfig())


@pytest.mark.parametrize("template_bos", ["", "<s>"])
def test_chat_prompts_take_no_loss_and_begin_once(template_bos):
    tokenizer = tiny_tokenizer(bos=True)
    tokenizer.chat_template = template_bos + tokenizer.chat_template
    messages = [{"role": "user", "content": "Who keeps bees?"}]
    (sequence,) = tokenize_self_edit(self_edit((messages, "Ann")), tokenizer, InnerLoopConfig()).sequences
    asked = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert list(sequence.input_ids[: sequence.prompt_length]) == asked
    assert sequence.input_ids.count(BOS_ID) == len(template_bos and [BOS_ID])
    assert tokenizer.decode(sequence.input_ids[sequence.prompt_length :]) == "Ann</s>"


def test_chat_prompts_without_a_template_are_refused():
    messages = [{"role": "user", "content": "Who?"}]
    with pytest.raises(ValueError, match="has no chat template for a prompt of messages"):
        tokenize_self_edit(self_edit((messages, "Ann")), tiny_tokenizer(chat_template=False), InnerLoopConfig())


def test_unknown_override_is_named():
    with pytest.raises(ValueError, match="'weight_decay', which is not one of learning_rate, num_train_epochs"):
        tokenize_self_edit(self_edit(("", "text"), weight_decay=0.1), tiny_tokenizer(), InnerLoopConfig())


def test_overrides_apply_to_this_self_edit_alone():
    config = InnerLoopConfig(learning_rate=1e-3, batch_size=2)
    overrides = {"learning_rate": 5e-5, "num_train_epochs": 3, "lr_scheduler_type": "cosine"}
    update = tokenize_self_edit(self_edit(("", "abc"), ("", "de"), ("", "fg"), **overrides), tiny_tokenizer(), config)
    assert update.config == InnerLoopConfig(
        learning_rate=5e-5, num_train_epochs=3, lr_scheduler_type="cosine", batch_size=2
    )
    assert (update.steps_per_epoch, update.num_steps) == (2, 6)
    assert config == InnerLoopConfig(learning_rate=1e-3, batch_size=2)


def test_a_self_edit_lowers_max_length_alone():
    edit, config = self_edit(("", "0123456789")), InnerLoopConfig(max_length=6)
    for chosen, length in ((4, 4), (100_000, 6)):
        update = tokenize_self_edit(replace(edit, overrides={"max_length": chosen}), tiny_tokenizer(), config)
        assert len(update.sequences[0].input_ids) == update.config.max_length == length


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("eos", [False, True])
@pytest.mark.parametrize("add_eos_token", [False, True])
def test_prompt_mask_and_special_tokens(bos, eos, add_eos_token):
    tokenizer = tiny_tokenizer(bos=bos, eos=eos)
    plain = tiny_tokenizer()
    start, end = [BOS_ID] * bos, [EOS_ID] * eos
    config = InnerLoopConfig(add_eos_token=add_eos_token)
    update = tokenize_self_edit(self_edit(("", "fact"), ("Who?", " Ann")), tokenizer, config)
    whole, with_prompt = update.sequences
    assert list(whole.input_ids) == start + plain("fact")["input_ids"] + end * add_eos_token
    assert (whole.prompt_length, whole.first_label) == (0, 1)
    assert list(with_prompt.input_ids) == start + plain("Who? Ann")["input_ids"] + end
    assert with_prompt.prompt_length == with_prompt.first_label == 4 + bos


def test_a_self_edit_chooses_whether_its_texts_end():
    for chosen, end in ((False, ""), (True, "</s>")):
        edit = self_edit(("", "fact"), add_eos_token=chosen)
        (sequence,) = tokenize_self_edit(edit, tiny_tokenizer(), InnerLoopConfig(add_eos_token=not chosen)).sequences
        assert tiny_tokenizer().decode(sequence.input_ids) == f"fact{end}"


def test_cut_to_max_length(caplog):
    edit = self_edit(("", "0123456789"), ("", "abcde"), ("0123", "456789"), ("", "abcdefg"))
    with caplog.at_level(logging.WARNING, logger="seal_hf.inner_loop.update"):
        update = tokenize_self_edit(edit, tiny_tokenizer(), InnerLoopConfig(max_length=6))
    tokens = tiny_tokenizer()
    assert [tokens.decode(sequence.input_ids) for sequence in update.sequences] == [
        "012345",
        "abcde</s>",
        "012345",
        "abcdef",
    ]
    assert [record.getMessage() for record in caplog.records] == [
        "3 training sequences were cut to max_length=6 tokens."
    ]


def test_nothing_cut_is_silent(caplog):
    with caplog.at_level(logging.WARNING, logger="seal_hf.inner_loop.update"):
        tokenize_self_edit(self_edit(("", "abcde")), tiny_tokenizer(), InnerLoopConfig(max_length=6))
    assert caplog.records == []


def test_sequences_without_a_label_are_left_out(caplog):
    edit = self_edit(("", "a"), ("", ""), ("0123456789", "cut away"), ("", "ab"))
    update = tokenize_self_edit(edit, tiny_tokenizer(), InnerLoopConfig(max_length=8))
    assert [list(sequence.input_ids) for sequence in update.sequences] == [tiny_tokenizer()("ab</s>")["input_ids"]]


@pytest.mark.parametrize("sequences", [(), (("", ""),), (("", "a"), ("", "b"))])
def test_empty_self_edit(sequences):
    with pytest.raises(ValueError, match="no sequence of at least two tokens"):
        tokenize_self_edit(self_edit(*sequences), tiny_tokenizer(), InnerLoopConfig())


def test_unknown_characters_are_kept_as_tokens():
    (sequence,) = tokenize_self_edit(self_edit(("", "é\u4e16")), tiny_tokenizer(), InnerLoopConfig()).sequences
    assert sequence.input_ids == (UNK_ID, UNK_ID, EOS_ID)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 9])
@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_each_epoch_is_a_permutation(batch_size, seed):
    update = update_of_lengths(9, 3, 3, 14, 5, 8, 2, num_train_epochs=4, batch_size=batch_size)
    steps = training_order(update, seed)
    assert len(steps) == update.num_steps == 4 * math.ceil(7 / batch_size)
    full, rest = divmod(7, batch_size)
    sizes = [batch_size] * full + [rest] * (rest > 0)
    assert [len(step) for step in steps] == sizes * 4
    epochs = [sum(steps[i : i + len(sizes)], []) for i in range(0, len(steps), len(sizes))]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 4  # another order in each epoch


def test_order_depends_on_seed_and_own_lengths_alone():
    update = update_of_lengths(9, 3, 12, 14, 5, learning_rate=1e-3)
    like = InnerUpdate(
        tuple(TrainingSequence(tuple(range(50, 50 + n)), 1) for n in (9, 3, 12, 14, 5)),
        InnerLoopConfig(learning_rate=1.0, lr_scheduler_type="cosine", max_grad_norm=0.0),
    )
    order = training_order(update, 0)
    assert training_order(update, 0) == order == training_order(like, 0)
    assert training_order(update, 1) != order
    longer = update_of_lengths(9, 3, 12, 14, 5, num_train_epochs=12)
    assert training_order(longer, 0)[: len(order)] == order


@pytest.mark.parametrize("batch_size", [1, 2])
def test_every_permutation_is_equally_likely(batch_size):
    update = update_of_lengths(7, 4, 9, 5, num_train_epochs=2, batch_size=batch_size)
    num_steps = update.steps_per_epoch
    for epoch in range(2):
        counts = Counter()
        for seed in range(2400):
            steps = training_order(update, seed)[epoch * num_steps : (epoch + 1) * num_steps]
            counts[tuple(sum(steps, []))] += 1
        assert len(counts) == 24
        chi_square = sum((count - 100) ** 2 / 100 for count in counts.values())
        assert chi_square < 49.7  # 23 degrees of freedom: exceeded with probability 0.001


def test_adapters_of_equal_counts_take_equal_length_ranks():
    short = update_of_lengths(2, 5, 3, 4, 6)
    long = update_of_lengths(60, 30, 50, 20, 40)
    ranks = [sorted(range(5), key=lambda i, u=u: len(u.sequences[i].input_ids)) for u in (short, long)]
    orders = [training_order(update, 8) for update in (short, long)]
    for (a,), (b,) in zip(*orders, strict=True):
        assert ranks[0].index(a) == ranks[1].index(b)


def test_adapters_of_unequal_counts_take_similar_length_quantiles():
    few, many = (
        update_of_lengths(*range(2, 10), num_train_epochs=20),
        update_of_lengths(*range(2, 18), num_train_epochs=20),
    )
    distances = []
    for seed in range(20):
        # The first epoch of `many` begins with the numbers of the first epoch of `few`.
        pairs = list(zip(training_order(few, seed)[:8], training_order(many, seed)[:8], strict=True))
        distances += [abs((a + 0.5) / 8 - (b + 0.5) / 16) for (a,), (b,) in pairs]
    assert sum(distances) / len(distances) < 0.2  # independent quantiles differ by 1/3 on average

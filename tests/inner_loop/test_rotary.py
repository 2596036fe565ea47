"""Rotary position embeddings written out, against those of transformers' models."""

import sys
import threading
from functools import partial

import pytest
import torch
from transformers.models.cohere import modeling_cohere
from transformers.models.glm import modeling_glm
from transformers.models.llama import modeling_llama

from helpers.operators import Operators
from helpers.tiny_models import KINDS, tiny_llama, tiny_model
from seal_hf.inner_loop import rotary
from seal_hf.inner_loop.rotary import written_out_rotary


USUAL = modeling_llama.apply_rotary_pos_emb


def inputs(dtype=torch.float32) -> list[torch.Tensor]:
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(1))
    shapes = [(2, 5, 4, 8), (2, 5, 2, 8), (2, 5, 8), (2, 5, 8)]
    query, key, cos, sin = (draw(shape).to(dtype) for shape in shapes)
    # As in attention: (B, H, T, D), with the heads of a token together in memory.
    return [query.requires_grad_().transpose(1, 2), key.requires_grad_().transpose(1, 2), cos, sin]


def values_and_gradients(function, *args):
    weights = [torch.randn(state.shape, generator=torch.Generator().manual_seed(2)) for state in args[:2]]
    turned = function(*args)
    total = sum((state * weight).sum() for state, weight in zip(turned, weights, strict=True))
    return [*turned, *torch.autograd.grad(total, args[:2])]


@pytest.mark.parametrize("kind", KINDS)
def test_it_computes_what_the_models_do(kind):
    model = tiny_model(kind)
    file = sys.modules[type(model.model.layers[0].self_attn).__module__]
    original, args = file.apply_rotary_pos_emb, inputs()
    expected = values_and_gradients(original, *args)
    with written_out_rotary(model):
        assert file.apply_rotary_pos_emb is not original
        found = values_and_gradients(file.apply_rotary_pos_emb, *args)
    assert file.apply_rotary_pos_emb is original
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
        assert one.stride() == other.stride()


def test_it_is_twelve_operations():
    query, key, cos, sin = inputs()
    with written_out_rotary(tiny_llama()), Operators() as operators:
        turned = modeling_llama.apply_rotary_pos_emb(query, key, cos, sin)
        torch.autograd.grad(turned, (query, key), [torch.ones_like(state) for state in turned])
    assert operators.names.count("mul") == 4 and operators.names.count("addcmul_") == 8
    views = {"unsqueeze", "slice", "split", "split_with_sizes", "detach", "chunk", "alias", "ones_like"}
    assert set(operators.names) - views == {"mul", "addcmul_"}


@pytest.mark.parametrize("file", [modeling_cohere, modeling_glm], ids=["neighbours", "a part"])
def test_other_forms_are_left_alone(file):
    assert not rotary._is_usual(file.apply_rotary_pos_emb)
    assert not rotary._is_usual(lambda query, key: (query, key))
    assert rotary._is_usual(USUAL)


def test_other_dtypes_and_arguments_are_given_to_the_usual_form():
    query, key, cos, sin = inputs(torch.bfloat16)
    with written_out_rotary(tiny_llama()):
        turn = modeling_llama.apply_rotary_pos_emb
        assert turn(query, key, cos.float(), sin.float())[0].dtype == torch.float32
        turned = turn(query.transpose(1, 2), key.transpose(1, 2), cos, sin, unsqueeze_dim=2)
        expected = USUAL(query.transpose(1, 2), key.transpose(1, 2), cos, sin, unsqueeze_dim=2)
        assert all(map(torch.equal, turned, expected))


def test_threads_leave_it_as_it_was():
    """The first to enter leaves while the second is inside."""
    model, entered, left = tiny_llama(), threading.Event(), threading.Event()

    def second():
        with written_out_rotary(model):
            entered.set()
            assert left.wait(10)
            assert modeling_llama.apply_rotary_pos_emb is not USUAL

    thread = threading.Thread(target=second)
    with written_out_rotary(model):
        thread.start()
        assert entered.wait(10)
    left.set()
    thread.join()
    assert modeling_llama.apply_rotary_pos_emb is USUAL and not rotary._originals

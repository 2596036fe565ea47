"""A new policy adapts what a bank can be stacked on, whatever PEFT would choose."""

import pytest

from helpers.adapters import BASE_ID
from helpers.architectures import tiny_causal_lm
from helpers.tiny_models import tiny_tokenizer
from seal_hf import SEALConfig
from seal_hf.adapters.policy import carried_policy
from seal_hf.outer_loop.policy import prepare_policy


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe", "olmoe", "gpt2", "gemma3"])
def test_default_policy_of_other_architectures(tmp_path, model_type):
    args = SEALConfig(str(tmp_path), report_to="none")
    model, _, _ = prepare_policy(tiny_causal_lm(model_type), args, tiny_tokenizer(), None, None)
    policy = carried_policy(model, BASE_ID)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * len(policy.layout.modules) > 0
    assert not any(part in name for name in trained for part in ("experts", ".gate.", "router", "vision"))

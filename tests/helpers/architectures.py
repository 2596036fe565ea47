"""A tiny random model of every causal-LM type of the installed transformers, built from its configuration class."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from helpers.tiny_models import BOS_ID, EOS_ID, PAD_ID, VOCAB_SIZE


MODEL_TYPES = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))

# Types of which no model for text alone can be built from a configuration, and why.
NOT_BUILT = {
    "blt": "transformers' own generate fails",
    "dbrx": "its configuration class fails in this version of transformers",
    "gemma3n": "its vision tower needs timm",
    "gemma4_assistant": "a part of another model",
    "gemma4_unified_assistant": "a part of another model",
    "musicgen": "for audio, built of other models",
    "musicgen_melody": "for audio, built of other models",
    "xlstm": "its states have another shape in a tiny model",
}

# What a field of a configuration becomes, by its name, where the class has it as a number.
_SIZES = {
    size: value
    for value, names in {
        VOCAB_SIZE: "vocab_size decoder_vocab_size vocab_size_per_layer_input",
        64: "max_position_embeddings n_positions max_seq_len n_ctx context_length max_target_positions",
        48: "intermediate_size moe_intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim n_inner ffn_hidden_size d_inner "
        "shared_expert_intermediate_size expert_ffn_hidden_size shared_intermediate_size intermediate_size_mlp dim_ff dff "
        "moe_shared_expert_intermediate_size dense_intermediate_size feed_forward_size",
        32: "hidden_size d_model n_embd emb_dim dim_model embedding_size word_embed_proj_dim embedding_dim lru_width "
        "image_size attention_hidden_size input_embedding_size output_embedding_size",
        8: "head_dim v_head_dim qk_rope_head_dim qk_nope_head_dim kv_lora_rank q_lora_rank kv_channels swa_head_dim d_head "
        "linear_key_head_dim linear_value_head_dim linear_head_dim index_head_dim attention_head_dim attention_head_size "
        "query_pre_attn_scalar dim_head mamba_head_dim mamba_d_head mamba_headdim state_size ssm_state_size mamba_d_state "
        "hidden_size_per_layer_input laurel_rank mamba_chunk_size chunk_size time_step_rank mamba_dt_rank o_lora_rank "
        "router_hidden_size adapter_rank patch_size",
        4: "num_attention_heads n_head n_heads num_heads attention_heads decoder_attention_heads encoder_attention_heads "
        "num_experts num_local_experts n_routed_experts moe_num_experts linear_num_value_heads linear_num_heads "
        "swa_num_attention_heads num_encoder_attention_heads num_decoder_attention_heads",
        2: "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_blocks num_key_value_heads "
        "num_experts_per_tok num_experts_per_token moe_k moe_topk linear_num_key_heads num_kv_heads "
        "swa_num_key_value_heads num_encoder_layers num_decoder_layers index_n_heads",
        1: "n_group n_groups topk_group first_k_dense_replace n_shared_experts num_shared_experts mamba_n_groups",
    }.items()
    for size in names.split()
}
_MLA = {"num_key_value_heads": 4}  # the keys of all heads come from one vector
_HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
_MAMBA_HEADS = {"mamba_n_heads": 8, "mamba_d_head": 8}
_SLIDING = {"layer_types": ["sliding_attention", "full_attention"]}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
_HEADS = {"head_dim": 8}  # whose default is `None`
_EXCEPTIONS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "deepseek_v3", "glm4_moe_lite", "minicpm3", "youtu"), _MLA),
    **dict.fromkeys(("axk2", "deepseek_v32", "glm_moe_dsa"), _MLA | {"index_topk": 16, "index_n_heads": 2}),
    **dict.fromkeys(("bamba", "granitemoehybrid"), _MAMBA_HEADS),
    **dict.fromkeys(("codegen", "gptj"), {"rotary_dim": 4}),
    **dict.fromkeys(("kimi_linear", "qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"), _HYBRID),
    **dict.fromkeys(("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral", "nemotron"), _HEADS),
    "bamba": _MAMBA_HEADS | {"attn_layer_indices": [1]},
    "cohere_compass_text": _SLIDING | {"rope_parameters": {kind: dict(_ROPE) for kind in _SLIDING["layer_types"]}},
    "deepseek_v2": _MLA | {"num_experts_per_tok": 2},
    "dots1": {"n_shared_experts": 1, "n_routed_experts": 4, "first_k_dense_replace": 1, "num_experts_per_tok": 2},
    "gemma3n_text": _SLIDING | {"num_kv_shared_layers": 0, "activation_sparsity_pattern": [0.0, 0.0]},
    # Causal, whatever it says.
    **dict.fromkeys(("gpt_neox", "gpt_neox_japanese"), {"is_decoder": False}),
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "granitemoehybrid": _MAMBA_HEADS | {"layer_types": ["mamba", "attention"]},
    "kimi_linear": _MLA | _HYBRID,
    "nemotron": _HEADS | {"num_key_value_heads": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "longcat_flash": _MLA | {"zero_expert_num": 2},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "qwen4_exp_text": _HYBRID
    | {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
    },
    "reformer": {"axial_pos_embds_dim": (16, 16), "axial_pos_shape": (8, 8), "attn_layers": ["local", "local"]},
    "roc_bert": {"shape_vocab_size": 104, "pronunciation_vocab_size": 104, "shape_embed_dim": 8},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 5,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
    "zamba2": {
        "layers_block_type": ["mamba", "hybrid"],
        "num_mem_blocks": 1,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
    "zaya": {"num_experts_per_tok": 1},
}


def tiny_config(model_type: str) -> PreTrainedConfig:
    """The configuration of a tiny model of this type, without dropout and other noise of training."""
    config_class = CONFIG_MAPPING[model_type]
    return config_class(**_shrunk(config_class()))


def _shrunk(default: PreTrainedConfig) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in vars(default).items():
        if isinstance(value, PreTrainedConfig):
            fields[name] = _shrunk(value)
        elif name in _SIZES and type(value) is int:
            fields[name] = _SIZES[name]
        elif type(value) is float and ("drop" in name or "jitter" in name):
            fields[name] = 0.0
    special = {"pad_token_id": PAD_ID, "bos_token_id": BOS_ID, "eos_token_id": EOS_ID}
    special = {name: value for name, value in special.items() if hasattr(default, name)}
    is_decoder = {"is_decoder": True} if hasattr(default, "is_decoder") else {}
    return {**fields, **special, **is_decoder, **_EXCEPTIONS.get(default.model_type, {})}


def tiny_causal_lm(model_type: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A random model of this type in evaluation mode, whose matrices are large enough that its texts differ."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(tiny_config(model_type), dtype=dtype).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, 0.15)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model

"""The fields of config.json that ask for something that our GPT does not compute.

Each is an error that names the field; otherwise the model would be computed wrongly and nobody
would notice.
"""

from __future__ import annotations

from typing import Any

from gptx_models.checkpoints.config_fields import ConfigFields

_QUANTIZED = ("quantization_config", "compression_config", "quantization")
# Field -> the values that change nothing; absent and null change nothing either. The fields belong
# to the families that we read and to similar ones (Granite, Gemma, Cohere, MiniCPM, Qwen, Llama 4).
# transformers ignores most of them outside their own class. Still, a file that holds another value
# was written by a program that computes something else.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "use_bidirectional_attention": (False,),
    "alibi": (False,),
    "rope_interleaved": (False,),
    "parallel_attn": (False,),
    "use_parallel_residual": (False,),
    "parallel_residual": (False,),
    "use_qk_norm": (False,),
    "qk_norm": (False,),
    "qk_layernorm": (False,),
    "use_mrope": (False,),
    "use_sliding_window": (False,),
    "is_causal": (True,),
    "pruned_heads": ({},),
    "attention_multiplier": (),
    "query_pre_attn_scalar": (),
    "attention_chunk_size": (),
    "clip_qkv": (),
    "final_logit_softcapping": (),
    "attn_logit_softcapping": (),
    "logits_soft_cap": (),
    "no_rope_layers": (),
    "no_rope_layer_interval": (),
    "mup_width_scale": (),
    "kv_lora_rank": (),
    "logits_scaling": (1,),
    "logit_scale": (1,),
    "residual_multiplier": (1,),
    "embedding_multiplier": (1,),
    "scale_emb": (1,),
    "scale_depth": (1,),
    "rotary_pct": (1,),
    "partial_rotary_factor": (1,),
    "num_local_experts": (0, 1),
    "num_experts": (0, 1),
    "n_routed_experts": (0, 1),
    "moe_num_experts": (0, 1),
}


def note_unsupported_fields(fields: ConfigFields) -> None:
    """Add a problem for each field that asks for what our GPT does not compute, in any family."""
    for name in _QUANTIZED:
        if fields.raw.get(name):
            fields.problems.append(
                f"the weights are quantized ({name}), expected fp32, fp16 or bf16 weights"
            )
    for name, neutral in _NEUTRAL.items():
        found = fields.raw.get(name)
        if found is not None and found not in neutral:
            fields.problems.append(f"{name} is {found!r:.80}, which gptx's GPT does not compute")

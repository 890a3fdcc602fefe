"""DeepSeek-MoE (Dai et al. 2024, arXiv:2401.06066): fine-grained routed experts beside shared ones, under plain multi-head attention.

    y = Σ_{e in the k best} p_e · expert_e(x) + shared(x),        p = softmax(W_r x) over all experts

with p as it is, not divided by the sum over the chosen (`renormalises` says otherwise), and no gate on the shared experts. The first
layers are dense.

No causal language model of transformers is this. ERNIE 4.5 has the experts and their place in the layers, and divides by
max(Σ p_e, `moe_norm_min`): a minimum of 1 leaves the probabilities as they are, for they never add up to more. Attention is Llama's. So two
parts of ERNIE are put out of the way, its correction bias, which would have to be zero, and its rotation of adjacent pairs.
Rows of experts are computed by one grouped product where torch has one, as for every native mixture.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, Ernie4_5_MoeConfig, Ernie4_5_MoeForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding


class DeepseekMoeConfig(Ernie4_5_MoeConfig):
    """ERNIE's settings, and those of Llama's attention."""

    model_type = "luthier_deepseek_moe"
    head_dim: int | None = None
    attention_bias: bool = False
    attention_dropout: float = 0.0
    renormalises: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        self.head_dim = self.head_dim or self.hidden_size // self.num_attention_heads
        self.moe_norm_min = 1e-20 if self.renormalises else 1.0
        super().__post_init__(**kwargs)


class DeepseekMoeForCausalLM(Ernie4_5_MoeForCausalLM):
    """ERNIE's experts behind Llama's attention."""

    config_class = DeepseekMoeConfig

    def __init__(self, config: DeepseekMoeConfig) -> None:
        super().__init__(config)
        for number, layer in enumerate(self.model.layers):
            layer.self_attn = LlamaAttention(config, number)
            if hasattr(layer.mlp, "gate"):
                layer.mlp.gate.moe_statics = nn.Identity()
        self.model.rotary_emb = LlamaRotaryEmbedding(config)
        self.post_init()


AutoConfig.register(DeepseekMoeConfig.model_type, DeepseekMoeConfig, exist_ok=True)
AutoModelForCausalLM.register(DeepseekMoeConfig, DeepseekMoeForCausalLM, exist_ok=True)

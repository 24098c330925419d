"""vLLM's models, whose borrowing layers read the KV cache of their donor (KVSharer, arXiv 2410.18517).

A borrower's `Attention` is made anew with `kv_sharing_target_layer_name`, vLLM's own argument for this: no cache is
allocated for the layer, and what it computes is not stored. Its key and value projections are still computed, as vLLM
has them in one matrix with the queries'.

Run with vLLM 0.32.0 on a CPU; README.md says what was and what was not.
"""

import json
from functools import cache
from pathlib import Path

from vllm.config import VllmConfig
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.models.gemma3 import Gemma3ForCausalLM
from vllm.model_executor.models.internlm2 import InternLM2ForCausalLM
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.mistral import MistralForCausalLM
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM
from vllm.model_executor.models.utils import extract_layer_index

STRATEGY = Path(__file__).with_name("strategy.json")


@cache
def read_map(path=STRATEGY):
    """The strategy's model, and its map borrower -> owner."""
    strategy = json.loads(Path(path).read_text(encoding="utf-8"))
    if strategy.get("version") != 1:
        raise ValueError(f"{path}: strategy version {strategy.get('version')} is not known, 1 is")
    if strategy["key_map"] != strategy["value_map"]:
        raise ValueError(f"{path}: vLLM cannot share keys and values apart")
    for field in ("dropped", "adapters"):
        if strategy.get(field):
            raise ValueError(f"{path}: `{field}` cannot be applied here: export the strategy with kvsharer")
    return strategy["model"], {int(b): int(d) for b, d in strategy["key_map"].items()}


def check_model(config, model):
    """Refuses a model that the strategy was not found on."""
    heads = config.num_attention_heads
    found = {
        "layers": config.num_hidden_layers,
        "heads": heads,
        "kv_heads": getattr(config, "num_key_value_heads", None) or heads,
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // heads,
    }
    for name, value in found.items():
        if model[name] != value:
            raise ValueError(f"{STRATEGY}: the strategy is for a model with {name} = {model[name]}, not {value}")


def share(model, vllm_config: VllmConfig):
    """Puts a model that was just built under the strategy."""
    fingerprint, borrowed = read_map()
    check_model(vllm_config.model_config.hf_text_config, fingerprint)
    # Which Attention belongs to which layer, and where it hangs in the model.
    found = {}
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, Attention):
                found[extract_layer_index(child.layer_name)] = (module, name, child)
    context = vllm_config.compilation_config.static_forward_context
    order = list(context)
    for borrower, donor in sorted(borrowed.items()):
        if borrower not in found or donor not in found:
            raise ValueError(f"layers {borrower} and {donor} are not both in this process: use no pipeline parallelism")
        (parent, name, old), target = found[borrower], found[donor][2]
        if old.sliding_window != target.sliding_window:
            raise ValueError(f"layers {borrower} and {donor} have different sliding windows")
        if getattr(old.impl, "logits_soft_cap", None) or old.has_sink:
            raise ValueError(f"layer {borrower}: soft caps and sinks are not carried over")
        del context[old.layer_name]
        new = Attention(
            old.num_heads,
            old.head_size,
            old.impl.scale,
            num_kv_heads=old.num_kv_heads,
            cache_config=vllm_config.cache_config,
            quant_config=old.quant_config,
            per_layer_sliding_window=old.sliding_window,
            attn_type=old.attn_type,
            prefix=old.layer_name,
            kv_sharing_target_layer_name=target.layer_name,
        )
        setattr(parent, name, new)
    # vLLM takes the order of this dictionary for that of the layers.
    layers = {name: context[name] for name in order}
    context.clear()
    context.update(layers)


def sharing(base):
    """The same model under the strategy."""

    class Sharing(base):
        def __init__(self, *, vllm_config: VllmConfig, prefix: str = "", **kwargs):
            super().__init__(vllm_config=vllm_config, prefix=prefix, **kwargs)
            share(self, vllm_config)

    Sharing.__name__ = Sharing.__qualname__ = f"Kvsharer{base.__name__}"
    Sharing.__doc__ = f"{base.__name__} with KV caches shared across layers."
    return Sharing


KvsharerLlamaForCausalLM = sharing(LlamaForCausalLM)
KvsharerMistralForCausalLM = sharing(MistralForCausalLM)
KvsharerInternLM2ForCausalLM = sharing(InternLM2ForCausalLM)
KvsharerQwen2ForCausalLM = sharing(Qwen2ForCausalLM)
KvsharerQwen3ForCausalLM = sharing(Qwen3ForCausalLM)
KvsharerGemma3ForCausalLM = sharing(Gemma3ForCausalLM)

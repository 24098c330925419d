"""Runs a transformers model under a sharing map that kvsharer found (KVSharer, arXiv 2410.18517).

    from transformers import AutoModelForCausalLM
    import kvsharer_sharing

    model = AutoModelForCausalLM.from_pretrained("...")
    kvsharer_sharing.apply(model)          # reads strategy.json beside this file
    model.generate(...)

Layers that borrow keys or values neither compute nor keep them: they read those of their donor. `apply` does this to
the model, and nothing else:
- `k_proj` and `v_proj` of borrowers are replaced by `NoProjection`, which frees their weights (don't save the model
  afterwards: a checkpoint needs them);
- a forward pre-hook of the decoder puts a `SharingCache` where no cache, or an empty `DynamicCache`, is given. `generate`
  and plain calls work as before; caches of other kinds (static, quantised, offloaded) are refused.

It relies on public names only: `layers`, `self_attn`, `k_proj` and `v_proj` of the decoder, and `Cache.update`. Models of
the Llama, Mistral, Qwen2, Qwen3 and Gemma 3 (text) families have them. Any attention implementation will do, as sharing
happens in the cache. For inference; made for one process.

Tested with transformers 5.24.0 and 5.19.0, torch 2.15 and 2.13, on CPUs, with "eager" and "sdpa" attention.
"""

import inspect
import json
from pathlib import Path

import torch
from torch import nn
from transformers import Cache, DynamicCache

__all__ = ["SharingCache", "apply"]


class NoProjection(nn.Module):
    """Stands where a borrower's projection was: one head of zeros, without memory, which the cache ignores."""

    def __init__(self, head_dim):
        super().__init__()
        self.head_dim = head_dim

    def forward(self, hidden_states):
        return hidden_states.new_zeros(1).expand(*hidden_states.shape[:-1], self.head_dim)


class SharingCache(DynamicCache):
    """A cache in which a borrower reads what its donor read in the same forward pass, and stores nothing.

    `key_map` and `value_map` are borrower -> owner, of keys and of values.
    """

    def __init__(self, config, key_map, value_map):
        super().__init__(config=config)
        self.maps = (dict(key_map), dict(value_map))
        # What owners read in this pass: beyond a sliding window that is more than they keep.
        self.read = ({}, {})
        self.last_reader = tuple(
            {owner: max(b for b, o in borrowed.items() if o == owner) for owner in borrowed.values()}
            for borrowed in self.maps
        )

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        own_keys, own_values = (layer_idx not in borrowed for borrowed in self.maps)
        if own_keys and own_values:
            own = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        elif own_keys:
            keys, _ = super().update(key_states, key_states[..., :0], layer_idx, *args, **kwargs)
            own = (keys, None)
        elif own_values:
            # A layer that owns one of the two keeps it where keys are: transformers counts tokens there.
            values, _ = super().update(value_states, value_states[..., :0], layer_idx, *args, **kwargs)
            own = (None, values)
        else:
            own = (None, None)
        return tuple(self._follow(kind, states, layer_idx) for kind, states in enumerate(own))

    def _follow(self, kind, own, layer_idx):
        owner = self.maps[kind].get(layer_idx, layer_idx)
        if own is None:
            own = self.read[kind][owner]
        last = self.last_reader[kind].get(owner, owner)
        if layer_idx < last:
            self.read[kind][owner] = own
        else:
            self.read[kind].pop(owner, None)
        return own

    def bytes(self):
        """Bytes of all keys and values that are kept."""
        states = [x for layer in self.layers for x in (layer.keys, layer.values) if x is not None]
        return sum(x.numel() * x.element_size() for x in states)


def apply(model, strategy=None):
    """Puts `model` under the strategy (a path; strategy.json beside this file if none is given); returns the model."""
    path = Path(strategy) if strategy is not None else Path(__file__).with_name("strategy.json")
    strategy = json.loads(path.read_text(encoding="utf-8"))
    config = model.config.get_text_config()
    decoder = model.base_model
    key_map, value_map = _check(strategy, config, decoder, path)
    for layer_idx, layer in enumerate(decoder.layers):
        attention = layer.self_attn
        if layer_idx in key_map:
            attention.k_proj = NoProjection(attention.head_dim)
        if layer_idx in value_map:
            attention.v_proj = NoProjection(attention.head_dim)

    def new_cache():
        return SharingCache(config, key_map, value_map)

    decoder.register_forward_pre_hook(_give_cache(decoder, new_cache), with_kwargs=True)
    return model


def _check(strategy, config, decoder, path):
    """The maps of a strategy that fits the model."""
    if strategy.get("version") != 1:
        raise ValueError(f"{path}: strategy version {strategy.get('version')} is not known, 1 is")
    for field in ("dropped", "adapters"):
        if strategy.get(field):
            raise ValueError(f"{path}: `{field}` cannot be applied here: export the strategy with kvsharer")
    heads = config.num_attention_heads
    found = {
        "layers": config.num_hidden_layers,
        "heads": heads,
        "kv_heads": getattr(config, "num_key_value_heads", None) or heads,
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // heads,
    }
    for name, value in found.items():
        if strategy["model"][name] != value:
            raise ValueError(f"{path}: the strategy is for a model with {name} = {strategy['model'][name]}, not {value}")
    if not hasattr(decoder, "layers") or not all(hasattr(x.self_attn, "k_proj") for x in decoder.layers):
        raise TypeError(f"{type(decoder).__name__} has no layers with self_attn.k_proj: its family is not supported")
    if any(isinstance(p, NoProjection) for x in decoder.layers for p in (x.self_attn.k_proj, x.self_attn.v_proj)):
        raise ValueError("the model is under a strategy already: load it anew")
    types = getattr(config, "layer_types", None)
    maps = []
    for kind in ("key_map", "value_map"):
        borrowed = {int(borrower): int(donor) for borrower, donor in strategy[kind].items()}
        for borrower, donor in borrowed.items():
            if not 0 <= donor < borrower < found["layers"] or donor in borrowed:
                raise ValueError(f"{path}: {kind}: layer {borrower} cannot borrow from layer {donor}")
            if types is not None and types[borrower] != types[donor]:
                raise ValueError(f"{path}: {kind}: layers {borrower} and {donor} have different sliding windows")
        maps.append(borrowed)
    return maps


def _give_cache(decoder, new_cache):
    """The pre-hook. transformers called the argument `past_key_values` before it called it `cache`."""
    name = "cache" if "cache" in inspect.signature(type(decoder).forward).parameters else "past_key_values"

    def hook(module, args, kwargs):
        others = [x for x in args if isinstance(x, Cache) and not isinstance(x, SharingCache)]
        given = next((kwargs[key] for key in ("cache", "past_key_values") if kwargs.get(key) is not None), None)
        if isinstance(given, SharingCache) or any(isinstance(x, SharingCache) for x in args):
            return args, kwargs
        if others or not (given is None or (type(given) is DynamicCache and given.get_seq_length() == 0)):
            kind = type(others[0] if others else given).__name__
            raise TypeError(f"a {kind} cannot hold shared layers: give no cache, or one of a call before")
        kwargs = {key: value for key, value in kwargs.items() if key not in ("cache", "past_key_values")}
        return args, kwargs | {name: new_cache()}

    return hook

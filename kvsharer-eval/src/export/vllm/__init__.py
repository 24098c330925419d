"""A vLLM plugin: models that share KV caches across layers, by the strategy in strategy.json.

vLLM calls `register` in every process (entry point `vllm.general_plugins`). It adds architectures and changes none: ask
for one with `--hf-overrides '{"architectures": ["KvsharerLlamaForCausalLM"]}'`.
"""

ARCHITECTURES = ("Llama", "Mistral", "InternLM2", "Qwen2", "Qwen3", "Gemma3")


def register():
    from vllm import ModelRegistry

    known = ModelRegistry.get_supported_archs()
    for family in ARCHITECTURES:
        name = f"Kvsharer{family}ForCausalLM"
        if name not in known:
            # By name, so that nothing is imported before vLLM has chosen its device.
            ModelRegistry.register_model(name, f"kvsharer_vllm.models:{name}")

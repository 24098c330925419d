"""Prefill and decoding of transformers on a GPU with random weights in the shape of Llama-2-7B: what `kvsharer bench
--model random:llama2-7b --device cuda --dtype bf16` is compared with.

Prints a JSON line a measurement: milliseconds a step (decoding) or a pass (prefill), median, least and greatest.
  dynamic   DynamicCache, eager
  static    StaticCache under torch.compile(mode="reduce-overhead"), which replays CUDA graphs

Run:  python transformers_cuda.py [--work 1x512,16x512,32x1024] [--prefill 2048] [--steps 32] [--repeats 5] [--no-static]
"""

import argparse
import json
import statistics
import time

import torch
import transformers
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

SHAPE = dict(
    vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
    num_attention_heads=32, num_key_value_heads=32, max_position_embeddings=4096,
)


def spread(milliseconds):
    return {
        "median_ms": round(statistics.median(milliseconds), 3),
        "min_ms": round(min(milliseconds), 3),
        "max_ms": round(max(milliseconds), 3),
    }


def timed(run):
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1e3


def prompt(model, batch, tokens):
    generator = torch.Generator("cuda").manual_seed(0)
    return torch.randint(model.config.vocab_size, (batch, tokens), generator=generator, device="cuda")


def prefill(model, tokens, repeats):
    ids = prompt(model, 1, tokens)
    run = lambda: model(ids, past_key_values=DynamicCache(config=model.config), use_cache=True, logits_to_keep=1)
    for _ in range(2):
        run()
    return spread([timed(run) for _ in range(repeats)])


def decode(model, step, cache, batch, tokens, steps, repeats):
    """Steps after a prompt; each repeat is the mean over its steps, as they follow each other without a wait."""
    ids = prompt(model, batch, tokens)
    means = []
    for repeat in range(repeats + 1):
        past = cache()
        logits = model(ids, past_key_values=past, use_cache=True, logits_to_keep=1).logits
        token, at = logits[:, -1:].argmax(-1), torch.tensor([tokens], device="cuda")

        def run():
            nonlocal token, at
            for _ in range(steps):
                logits = step(input_ids=token, past_key_values=past, use_cache=True, cache_position=at).logits
                token, at = logits[:, -1:].argmax(-1), at + 1

        mean = timed(run) / steps
        if repeat:  # the first one warms up
            means.append(mean)
    return spread(means)


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", default="1x512,16x512,32x1024", help="BATCHxPROMPT, …")
    parser.add_argument("--prefill", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-static", action="store_true", help="leave the compiled static cache out")
    args = parser.parse_args()
    with torch.device("cuda"):
        model = LlamaForCausalLM._from_config(LlamaConfig(**SHAPE), dtype=torch.bfloat16).eval()
    made_with = {
        "torch": torch.__version__, "transformers": transformers.__version__, "device": torch.cuda.get_device_name(),
    }

    def report(work, how, numbers):
        print(json.dumps({"work": work, "how": how, **numbers, **made_with}), flush=True)

    report(f"prefill 1x{args.prefill}", "dynamic", prefill(model, args.prefill, args.repeats))
    work = [tuple(map(int, item.split("x"))) for item in args.work.split(",")]
    for batch, tokens in work:
        cache = lambda: DynamicCache(config=model.config)
        numbers = decode(model, model, cache, batch, tokens, args.steps, args.repeats)
        report(f"decode {batch}x{tokens}", "dynamic", numbers)
    if not args.no_static:
        step = torch.compile(model, mode="reduce-overhead", fullgraph=True)
        for batch, tokens in work[:1]:
            cache = lambda: StaticCache(config=model.config, max_cache_len=tokens + args.steps)
            numbers = decode(model, step, cache, batch, tokens, args.steps, args.repeats)
            report(f"decode {batch}x{tokens}", "static, compiled", numbers)


if __name__ == "__main__":
    main()

"""Prefill and decode speed of transformers (f32, CPU) on a GGUF file: the figures ours are compared with.

Prints JSON, tokens per second as median, min and max of the measured repeats after one warm-up:
  prefill_512    one prompt of 512 tokens, empty cache, logits of the last position only
  prefill_30x64  a batch of 30 prompts of 64 tokens, the same
  decode_64      64 greedy tokens, one at a time with a DynamicCache, after a 512-token prompt (not timed)
Prompts are random ids from a fixed seed; speed does not depend on the text.

Run:  python transformers_speed.py --gguf FILE [--threads N, default all cores] [--repeats 3] [--attention sdpa|eager]
"""

import argparse
import hashlib
import json
import os
import pathlib
import platform
import statistics
import time
from importlib.metadata import version

import torch
import transformers
from transformers import AutoModelForCausalLM, DynamicCache

PROMPT, BATCH, SHORT, NEW_TOKENS = 512, 30, 64, 64


def prefill(model, ids):
    """Seconds for one prefill, and the logits and cache it leaves."""
    cache = DynamicCache(config=model.config)
    start = time.perf_counter()
    logits = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
    return time.perf_counter() - start, logits, cache


def decode(model, ids, new_tokens):
    """Seconds for new_tokens greedy steps after an untimed prefill."""
    _, logits, cache = prefill(model, ids)
    start = time.perf_counter()
    for _ in range(new_tokens):
        token = logits[:, -1:].argmax(-1)
        logits = model(token, past_key_values=cache, use_cache=True).logits
    seconds = time.perf_counter() - start
    assert cache.get_seq_length() == ids.shape[1] + new_tokens
    return seconds


def measure(step, tokens, repeats):
    step()  # warm-up
    rates = [tokens / step() for _ in range(repeats)]
    named = {"median": statistics.median(rates), "min": min(rates), "max": max(rates)}
    return {"tokens": tokens} | {name: round(rate, 2) for name, rate in named.items()}


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gguf", type=pathlib.Path, required=True)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--attention", choices=["sdpa", "eager"], default="sdpa")
    parser.add_argument("--out", type=pathlib.Path, help="write the JSON there too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = AutoModelForCausalLM.from_pretrained(
        args.gguf.parent, gguf_file=args.gguf.name, dtype=torch.float32, attn_implementation=args.attention
    ).eval()
    generator = torch.Generator().manual_seed(0)
    one = torch.randint(model.config.vocab_size, (1, PROMPT), generator=generator)
    many = torch.randint(model.config.vocab_size, (BATCH, SHORT), generator=generator)
    result = {
        "made_with": {"torch": torch.__version__, "transformers": transformers.__version__, "gguf": version("gguf")},
        "gguf_sha256": hashlib.sha256(args.gguf.read_bytes()).hexdigest(),
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "dtype": "f32",
        "attention": args.attention,
        "repeats": args.repeats,
        "unit": "tokens/s",
        "prefill_512": measure(lambda: prefill(model, one)[0], PROMPT, args.repeats),
        "prefill_30x64": measure(lambda: prefill(model, many)[0], BATCH * SHORT, args.repeats),
        "decode_64": measure(lambda: decode(model, one, NEW_TOKENS), NEW_TOKENS, args.repeats),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()

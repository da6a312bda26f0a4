"""Makes a fresh reasoner for papers/unir.py: a small random model with the vocabulary of another one.

    python tools/make_reasoner.py --like models/tiny --out-dir runs/make_reasoner/tiny
    python papers/unir.py --model runs/make_reasoner/tiny --frozen models/tiny

Its head is zero and not tied to its embeddings: all its logits are 0. Added to those of the frozen model they
change nothing, so the run begins as the frozen model itself. The first step moves the head alone, since a
head of zeros passes no gradient on; the rest follows from the second step on.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where plainrl/ lies

from plainrl.flags import Bounds, Count, check_flags, check_model_is_there, parse
from plainrl.folder import refuse_existing
from plainrl.models import find_model, load_tokenizer, save_model
from plainrl.sampler import context_length
from plainrl.screen import fail, in_one_process, say

HEAD = 32  # numbers of an attention head


@dataclass
class Args:
    like: str = "models/tiny"
    """model whose tokenizer and context the reasoner gets: a Hugging Face folder or a hub name"""
    out_dir: Path = Path("runs/make_reasoner/tiny")
    """folder for the reasoner; one that exists is never overwritten"""
    layers: Count = 2
    """how many layers"""
    width: Annotated[int, Bounds(at_least=HEAD, at_most=2**16)] = 64
    """numbers of a hidden state; a multiple of 32"""
    seed: Annotated[int, Bounds(at_least=0)] = 0
    """seed of the random weights"""


def zero_head_model(tokenizer, context: int, layers: int, width: int, seed: int):
    """A random Llama whose head is zero, so that all logits are 0."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=max(tokenizer.get_vocab().values()) + 1,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // HEAD,
        head_dim=HEAD,
        max_position_embeddings=context,
        initializer_range=0.06,  # that of models/tiny
        tie_word_embeddings=False,  # a tied head of zeros would make the embeddings zero too
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    torch.nn.init.zeros_(model.lm_head.weight)
    return model


def main(args: Args) -> None:
    in_one_process("tools/make_reasoner.py")
    check_flags(args)
    check_model_is_there(args.like, "--like")
    if args.width % HEAD:
        fail(f"--width {args.width}: is no multiple of {HEAD}; give one")
    refuse_existing("--out-dir", args.out_dir)
    from transformers import AutoConfig

    tokenizer = load_tokenizer(args.like, "--like")
    context = context_length(AutoConfig.from_pretrained(find_model(args.like, "--like"))) or 4096
    model = zero_head_model(tokenizer, context, args.layers, args.width, args.seed)
    save_model(args.out_dir, model, tokenizer)
    say(f"{model.num_parameters():,} parameters -> {args.out_dir}")


if __name__ == "__main__":
    main(parse(Args, __doc__))


# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "torch==2.13.0", "transformers>=5.16.1,<5.20", "safetensors", "numpy", "tyro", "filelock",
#     "math-verify>=0.9,<0.10", "antlr4-python3-runtime==4.13.2", "matplotlib", "jinja2",
# ]
# ///

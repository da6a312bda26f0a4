"""Tiny random models for the tests: two layers, no file, no network, different for each seed."""

import math

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from plainrl.rollout import completion_seed
from plainrl.sampler import HFSampler

EOS = 1  # the end-of-text id of these models; 0 and EOS are real tokens, in prompts and completions

ROUNDING = 2.0**-23  # of float32: the last digit of a number, relative to the number
FEW = 32  # roundings: what `roundings` may come to where two results differ by rounding alone
GRADIENT = 256 * ROUNDING  # the same for the `distance` of gradients, 3e-5: terms of both signs, which cancel

# Prompts of different lengths, two equal; 0, which `pad` fills with, and EOS are ordinary tokens inside.
PROMPTS = [[3, 0, EOS, 7, 9, 20, 33], [5, 6], [3, 0, EOS, 7, 9, 20, 33], [40, 41, 42, 0], [5, 6]]
COMPLETIONS = [[4, 0, 0, EOS], [9], [8, 8, 8, 8, 60, 61, EOS], [EOS], [0, 0, 0]]


def random_model(
    dtype=torch.float64, seed: int = 0, vocab: int = 64, kind: str = "llama", tied: bool = False
):
    """A random causal language model whose distributions are far from uniform and depend on every token.

    `kind` is "llama" (as many key heads as query heads) or "qwen2" (two query heads for one, biases).
    """
    default_dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)  # the same random numbers whatever the dtype
    torch.manual_seed(seed)
    shape = dict(
        vocab_size=vocab,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        initializer_range=0.25,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=None,
    )
    # (With a pad_token_id, transformers would keep that token's embedding without gradient, against every
    # finite difference.)
    if kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, **shape))
    else:
        model = Qwen2ForCausalLM(Qwen2Config(num_key_value_heads=1, **shape))
    with torch.no_grad():
        for parameter in model.parameters():
            # Norms start at 1 and biases at 0: moved, so that a forgotten one is seen.
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape))
    if dtype == torch.float64:
        model = in_float64(model)
    torch.set_default_dtype(default_dtype)
    return model.to(dtype).train()


def in_float64(model):
    """Its norms too, which those of transformers round to float32 whatever the model's dtype."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                norm = torch.nn.RMSNorm(len(child.weight), eps=child.variance_epsilon)
                norm.weight = child.weight
                setattr(module, name, norm)
    return model.double()


class Float64:
    """In place of transformers' AutoModelForCausalLM, where rounding must not show.

    No draw lies within 1e-15 of a boundary of two tokens, so that equal seeds give equal tokens in whatever
    batch, and two ways to the same numbers differ by some 1e-14.
    """

    @staticmethod
    def from_pretrained(path, **kwargs):
        model = in_float64(AutoModelForCausalLM.from_pretrained(path))
        return (model, {"missing_keys": set()}) if kwargs.get("output_loading_info") else model


def sample(
    model,
    prompts=PROMPTS,
    n=4,
    tokens=16,
    temperature=1.0,
    seeds=None,
    eos_ids=(EOS, 17, 30, 45),
    top_p=1.0,
    **options,
):
    """Completions that end early often: four tokens of 64 end them."""
    seeds = seeds or [completion_seed(0, 1, j, 0, i) for j in range(len(prompts)) for i in range(n)]
    return HFSampler(model, list(eos_ids), **options).generate(prompts, n, tokens, temperature, seeds, top_p)


def one_token_at_a_time(model, prompt: list[int], completion: list[int], temperature: float) -> torch.Tensor:
    """Distributions [T, V] that the completion's tokens were drawn from: one row, one token per forward pass,
    no padding."""
    cache, rows = None, []
    with torch.no_grad():
        for position, token in enumerate([*prompt, *completion[:-1]]):
            out = model(input_ids=torch.tensor([[token]]), past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            if position >= len(prompt) - 1:
                rows.append(torch.log_softmax(out.logits[0, -1] / temperature, dim=-1))
    return torch.stack(rows)


def distributions(model, prompt: list[int], completion: list[int], temperature: float) -> torch.Tensor:
    """The same [T, V] in one forward pass of the bare row."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + completion]), use_cache=False).logits[
            0, len(prompt) - 1 : -1
        ]
    return torch.log_softmax(logits / temperature, dim=-1)


def gradient(model) -> torch.Tensor:
    """All gradients as one vector; a parameter without one counts as zero."""
    return torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()]
    )


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Relative L2 distance."""
    return ((ours - theirs).norm() / theirs.norm()).item()


def roundings(ours, theirs) -> float:
    """The largest difference of two lists of numbers, in roundings of the largest of `theirs` (or of 1).

    In which order a sum is added is the processor's choice, and so are the last digits of a float32. The
    error of a sum is that of its largest terms, whatever remains: the log-probability -0.5 is a difference of
    logits as large as those behind -16. So the measure is the largest number and not each one. Between
    kernels for SSE, AVX2 and AVX-512 the tests' models differ by up to 7 roundings; another temperature,
    token or position is thousands away.
    """
    ours, theirs = (torch.as_tensor(numbers, dtype=torch.float64) for numbers in (ours, theirs))
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1) / ROUNDING).item()


def as_batch(batch: dict, rows: slice = slice(None)):
    """The `rows` of a batch that a test wrote as a dict: what `accumulate_gradients` of the scripts works
    on."""
    from plainrl.rollout import Batch

    columns = {name: values for name, values in batch.items() if torch.is_tensor(values)}
    return Batch(batch["prompt_ids"], batch["completion_ids"], columns).rows(rows)


def nucleus_entropy_by_loops(logprobs: np.ndarray, p: float, rule: str) -> float:
    """SIREN's entropy of one token's distribution [V], one token of the vocabulary at a time."""
    kept, mass = [], 0.0
    for probability in sorted(np.exp(logprobs), reverse=True):
        if p < 1 and rule == "official" and mass + probability >= p:
            break
        kept.append(probability)
        mass += probability
        if p < 1 and rule == "standard" and mass >= p:
            break
    return -sum(q / mass * math.log(q / mass) for q in kept)

"""Frozen models that are asked in words, beside the one that is trained: a verifier, a solver."""

from plainrl import ranks
from plainrl.models import eos_ids, load_model
from plainrl.rollout import encode_prompt, encoded_or_fail
from plainrl.sampler import HFSampler
from plainrl.screen import fail


def load_asked(flag: str, name: str, max_new_tokens: int) -> tuple:
    """The frozen model that a flag names, its tokenizer and its sampler. `max_new_tokens` is what the flag
    <flag>-tokens says. What cannot be asked ends the run in one line."""
    model, tokenizer = load_model(name, flag=flag)
    model.eval().requires_grad_(False)
    ranks.release_weights(model)
    encoded_or_fail(tokenizer, "1", None, flag, "use another model")
    sampler = HFSampler(model, eos_ids(model, tokenizer))
    if sampler.room is not None and max_new_tokens >= sampler.room:
        fail(
            f"{flag}-tokens {max_new_tokens}: the context of {flag} has {sampler.room} tokens, which leaves "
            "none for the question; give fewer"
        )
    return model, tokenizer, sampler


def ask(
    sampler,
    tokenizer,
    prompts: list[str],
    max_new_tokens: int,
    temperature: float = 0.0,
    seeds: list[int] | None = None,
    top_p: float = 1.0,
) -> list[tuple[str, int] | None]:
    """What is said to each prompt, and in how many tokens; None where the context has no room for it. A
    temperature above 0 needs a seed for each prompt."""
    ids = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    room = (sampler.room or 10**9) - max_new_tokens
    fits = [i for i in range(len(prompts)) if len(ids[i]) <= room]
    own_seeds = [seeds[i] if seeds else 0 for i in fits]
    completions = sampler.generate([ids[i] for i in fits], 1, max_new_tokens, temperature, own_seeds, top_p)
    found = [None] * len(prompts)
    for i, completion in zip(fits, completions, strict=True):
        text = tokenizer.decode(completion.ids, skip_special_tokens=True)
        found[i] = (text, len(completion.ids))
    return found

"""Several models as one: their logits are added. And frozen models beside one that is trained.

    pi = softmax(sum_j weight_j z_j / temperature),     z_j: logits of model j, all of one vocabulary

pi is the renormalised product of the models' distributions, each to the power of its weight. `LogitSum` is
called as a model of transformers is, so sampler and scorer take it for one. Its hidden state is those of all
models side by side, and its head reads each part by that model's own head. The keys and values of all models
lie in one cache, which keeps them by layer.

Letters in shapes: J models, M tokens, V vocabulary.
"""

from functools import partial
from types import SimpleNamespace

import torch

from plainrl import ranks
from plainrl.models import check_same_tokens, load_model
from plainrl.sampler import context_length
from plainrl.scoring import check_model
from plainrl.screen import fail, or_fail, say
from plainrl.shared_prompts import use_shared_prompts


class LogitSum(torch.nn.Module):
    """J models whose weighted logits are added. All but the last are frozen: only that one gets a gradient.

    With `apart` the head does not add: it gives the J weighted logits of a token, [M, J, V], to a scorer that
    looks at each.
    """

    def __init__(self, models: list, weights: list[float], apart: bool = False):
        super().__init__()
        self.models = torch.nn.ModuleList(models)
        self.head = SideBySideHeads(models, weights, apart)
        self.config = min((model.config for model in models), key=longest_context)
        self.generation_config = models[0].generation_config  # a completion ends where that model ends one
        for model in models:
            use_shared_prompts(model)

    def base_model(self, **inputs) -> SimpleNamespace:
        """The last hidden states of all models, side by side: [.., sum of the hidden sizes]."""
        *frozen, trained = self.models
        states = []
        with torch.no_grad():
            for model in frozen:
                states.append(ranks.inside(model, partial(model.base_model, **inputs)).last_hidden_state)
        states.append(trained.base_model(**inputs).last_hidden_state)
        return SimpleNamespace(last_hidden_state=torch.cat(states, dim=-1))

    def forward(self, **inputs) -> SimpleNamespace:
        return SimpleNamespace(logits=self.head(self.base_model(**inputs).last_hidden_state))

    def inside(self, function):
        """What `ranks.inside` does for the model that is trained; `base_model` does it for the others."""
        return ranks.inside(self.models[-1], function)

    def get_input_embeddings(self):
        return self.models[0].get_input_embeddings()

    def get_output_embeddings(self):
        return self.head

    @property
    def device(self) -> torch.device:
        return self.models[0].device


class SideBySideHeads(torch.nn.Module):
    """Hidden states side by side -> logits, weighted and added (or, `apart`, stacked)."""

    def __init__(self, models: list, weights: list[float], apart: bool):
        super().__init__()
        self.heads = torch.nn.ModuleList(model.get_output_embeddings() for model in models)
        self.weights, self.apart = weights, apart
        self.hidden_sizes = [head.weight.shape[1] for head in self.heads]

    @property
    def weight(self) -> torch.Tensor:
        """A scorer asks for its type and for how many logits there are."""
        return self.heads[-1].weight

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        parts = hidden.split(self.hidden_sizes, dim=-1)
        logits = [weight * head(part) for weight, head, part in zip(self.weights, self.heads, parts)]
        return torch.stack(logits, dim=-2) if self.apart else sum(logits)


def longest_context(config) -> float:
    """How many tokens a model was made for; infinity where its config does not say."""
    return context_length(config) or float("inf")


# --- frozen models of the same tokens -----------------------------------------------------------------------


def load_beside(flag: str, name: str, other_flag: str, other, tokenizer):
    """A frozen model whose logits are of the same tokens as those of another, which is there with its
    tokenizer. One of other tokens ends the run in one line."""
    model, its_tokenizer = load_model(name, flag=flag)
    check_model(model, flag)
    ranks.release_weights(model)
    where = f"{flag} {name}"
    or_fail(check_same_tokens, where, its_tokenizer.get_vocab(), other_flag, tokenizer.get_vocab())
    sizes = [each.get_output_embeddings().weight.shape[0] for each in (model, other)]
    if sizes[0] != sizes[1]:
        fail(f"{where}: its head has {sizes[0]:,} tokens, that of {other_flag} {sizes[1]:,}")
    if its_tokenizer.chat_template != tokenizer.chat_template:
        say(f"warning: {flag} has another chat template; {name} sees prompts as {other_flag} writes them")
    return model.eval().requires_grad_(False)


def alpha_of(model) -> float:
    """The weight that a reasoner's logits had in its training: its config.json says it. Of others 1."""
    return getattr(model.config, "unir", {"alpha": 1.0})["alpha"]


def sample_here(args, flag: str) -> None:
    """Logits of two models are added by the sampler of this project: vLLM runs one model alone."""
    if args.engine == "vllm" or getattr(args, "vllm_server", None):
        fail(f"{flag}: adds the logits of several models, which vLLM cannot; sample with --engine hf")
    args.engine = "hf"

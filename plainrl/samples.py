"""What a run keeps for people to look at: completions token by token, and how every group fared.

    samples.jsonl      one line for each completion of the first group of every step, or the first row
    dev_samples.jsonl  at every dev score, one line for each of the first problems of dev
    groups.jsonl       one line a step and one a dev score: the right completions of every group

Besides, what eval.py, papers/latent_seek.py and tools/select_data.py need alike: a folder of their own, and
to go on with their samples where they stopped.

A number of each token is a list with one entry a token, EOS included, or one number where all are the same.
Letters in shapes: N rows (a prompt with a completion each), G of them a group, T completion tokens.
"""

import hashlib
import json
import math
import os
from collections import Counter
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch

from plainrl import ranks
from plainrl.folder import whole_lines
from plainrl.models import device_name, model_hash
from plainrl.rollout import LAST, Batch, Rollout, encode_prompt
from plainrl.scoring import score_all
from plainrl.screen import fail

DEV_PROBLEMS, DEV_SAMPLES = 8, 4  # that are kept of a dev score


def append(path: Path, rows: list[dict]) -> None:
    """Write the rows behind what is in the file, one line each."""
    with open(path, "a") as file:
        file.writelines(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)


# --- tokens and their numbers -------------------------------------------------------------------------------


class TokenTexts(dict):
    """{id: the text of the token as the model sees it}, found out when it is first asked for.

    A special token is called by its name. One that is only a part of a letter has no text: it is called as in
    the vocabulary.
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.special |= set(tokenizer.all_special_ids)
        # Many tokenizers take the space away from the first token of a text: so another stands before it.
        self.first = tokenizer.encode("a", add_special_tokens=False)[-1:]
        self.first_text = self.decode([])

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode([*self.first, *ids], clean_up_tokenization_spaces=False)

    def __missing__(self, id: int) -> str:
        text = "" if id in self.special else self.decode([id]).removeprefix(self.first_text)
        if not text or "\N{REPLACEMENT CHARACTER}" in text:
            name = self.tokenizer.convert_ids_to_tokens(id)
            text = f"<{id}>" if name is None else name  # a model may have more tokens than its tokenizer
        self[id] = text
        return text


def decimals(value: float) -> float | int | None:
    """Three decimals. Whole numbers are written as such, and what is no number as None.

    >>> decimals(-0.12345), decimals(-0.0001), decimals(float("nan"))
    (-0.123, 0, None)
    """
    return whole(round(value, 3)) if math.isfinite(value) else None


def digits(value: float, count: int = 3) -> float | int | None:
    """So many significant digits.

    >>> digits(0.00123456), digits(1.0004), digits(123456.0)
    (0.00123, 1, 123000)
    """
    return whole(float(f"{value:.{count}g}")) if math.isfinite(value) else None


def whole(value: float) -> float | int:
    return int(value) if value == int(value) else value


def compact(values: list) -> list | float | int | None:
    """One number, where all are the same."""
    return values[0] if len(set(values)) == 1 else values


ROUNDED = {"logprob": decimals, "entropy": decimals, "gap": partial(digits, count=2)}  # all else: `digits`


def token_numbers(batch: Batch, count: int, own: dict[str, torch.Tensor]) -> list[dict]:
    """The numbers of each token of the first `count` rows, {name: numbers} a row: those that the last update
    has left in the batch (`LAST`), and the algorithm's `own`, [N, T] each.

    A row that no update has seen has none. Each rank has seen other rows, so they are gathered, and all ranks
    must call it.
    """
    columns = {name.removeprefix("last_"): batch[name] for name in LAST if name in batch} | own
    table = torch.stack([values[:count].float() for values in columns.values()], dim=-1).tolist()
    mine = []
    for row in batch["seen"][:count, 0].nonzero().flatten().tolist():
        length, numbers = len(batch.completion_ids[row]), {}
        for name, values in zip(columns, zip(*table[row][:length])):
            numbers[name] = compact(list(map(ROUNDED.get(name, digits), values)))
        mine.append((row, numbers))
    seen = dict(ranks.gather(mine))
    return [seen.get(row, {}) for row in range(count)]


def largest(batch: Batch) -> dict[str, tuple[float, int, int]]:
    """The token with the largest gap and the one with the largest ratio: {name: (number, row, position)}.

    What is no number counts as infinite. Empty where no update has seen a token. All ranks must call it.
    """
    seen = batch["completion_mask"] & batch["seen"]  # [N, T]
    mine = []
    for name in ("gap", "ratio") if seen.any() else ():
        values = batch[f"last_{name}"].abs().nan_to_num(nan=math.inf, posinf=math.inf)
        value, place = values.masked_fill(~seen, -1.0).flatten().max(dim=0)
        mine.append((name, (value.item(), *divmod(place.item(), seen.shape[1]))))
    found = {}
    for name, entry in ranks.gather(mine):  # of equal ones the first row
        found[name] = max(found.get(name, entry), entry, key=lambda each: (each[0], -each[1]))
    return found


# --- lines of the logs --------------------------------------------------------------------------------------


def verdict(grade) -> dict:
    return {"parsed": grade.parsed, "reward": grade.score, "why": grade.why}


def first_group(rollout: Rollout, batch: Batch | None, columns: dict) -> list[dict]:
    """A row of samples.jsonl for each completion of the first group, without its tokens.

    `columns` are the algorithm's: of those that are lists, one entry a completion, each row gets its own.
    Without a batch, because nothing was trained on, the rows have no advantage and no columns.
    """
    problem = rollout.problems[0]
    lists = {name: values for name, values in columns.items() if not torch.is_tensor(values)}
    rows = []
    for i in range(batch.rows_per_group[0] if batch else rollout.group_size):
        row = {"prompt": problem.prompt, "completion": rollout.texts[i], "gold": problem.answer}
        advantage = round(batch["advantages"].flatten()[i].item(), 4) if batch else None
        row |= verdict(rollout.grades[i]) | {"advantage": advantage}
        rows.append(row | ({name: values[i] for name, values in lists.items()} if batch else {}))
    return rows


def token_rows(
    rollout: Rollout, batch: Batch | None, count: int, columns: dict, texts: TokenTexts
) -> list[dict]:
    """What the `count` rows of the first group have besides: their tokens, each with its numbers where an
    update has seen it. All ranks must call it. `columns` are the algorithm's, of which the tensors [N, T]
    count."""
    own = {name: values for name, values in columns.items() if torch.is_tensor(values)}
    rows = []
    for i, numbers in enumerate(token_numbers(batch, count, own) if batch else [{}] * count):
        row = {"index": rollout.problems[0].index, "truncated": rollout.truncated[i]}
        rows.append(row | {"tokens": [texts[id] for id in rollout.completion_ids[i]]} | numbers)
    return rows


def row_line(batch: Batch, tokenizer, texts: TokenTexts | None) -> dict:
    """A row of samples.jsonl for the first row of a step that trains on rows of text; its tokens too, where
    there are `texts`. All ranks must call it."""
    prompt_ids, completion_ids = batch.prompt_ids[0], batch.completion_ids[0]
    line = {"prompt": tokenizer.decode(prompt_ids), "completion": tokenizer.decode(completion_ids)}
    if texts is not None:
        line["tokens"] = [texts[id] for id in completion_ids]
        line |= token_numbers(batch, 1, {})[0]
    return line


def not_trained(rollout: Rollout, sampled: Rollout, count: int, tokenizer, system: str | None) -> dict:
    """For the first row of the first group, which has `count` rows: the prompt with a hint, where one was
    shown, and completions of the same problem that the step sampled too and does not train on. `sampled` is
    all that it sampled."""
    G, problem, found = rollout.group_size, rollout.problems[0], {}
    plain = encode_prompt(tokenizer, problem.prompt, system)
    hinted = [row for row in range(count) if rollout.prompt_ids[row] != plain]
    if hinted:  # all rows of a guided group, the second half of a joined one
        row = hinted[0]
        found["sampled_prompt"] = tokenizer.decode(rollout.prompt_ids[row])
        found["hint"] = rollout.problems[row // G].hint

    trained = set(map(id, rollout.completions))  # the same objects as in `sampled`
    others = []
    for row, completion in enumerate(sampled.completions):
        if sampled.problems[row // G].prompt == problem.prompt and id(completion) not in trained:
            ids = sampled.prompt_ids[row]
            prompt = problem.prompt if ids == plain else tokenizer.decode(ids)
            others.append({"prompt": prompt, "completion": sampled.texts[row]} | verdict(sampled.grades[row]))
    return found | ({"also_sampled": others} if others else {})


def group_counts(split: str, indices: list[int | None], rollout: Rollout) -> dict:
    """How many completions of each group are right, and why the others are not."""
    G = rollout.group_size
    whys = ("" if grade.correct else grade.why for grade in rollout.grades)
    return {
        "split": split,
        "index": indices,
        "right": rollout.correct(),
        "of": [G] * len(indices),
        "why": dict(Counter(whys)),
    }


def step_line(sampled: Rollout, rollout: Rollout, found: dict, texts: TokenTexts) -> dict:
    """A step's line of groups.jsonl: every group that was sampled, and the tokens that `largest` has `found`
    in those that were trained on, where a step trains at all."""
    line = group_counts("train", [problem.index for problem in sampled.problems], sampled)
    for name, (value, row, position) in found.items():
        group, sample = divmod(row, rollout.group_size)
        line[f"largest_{name}"] = {
            name: digits(value),
            "token": texts[rollout.completion_ids[row][position]],
            "index": rollout.problems[group].index,
            "sample": sample,
            "position": position,
        }
    return line


def dev_lines(rollouts: list[Rollout], model, args, texts: TokenTexts) -> dict[str, list[dict]]:
    """The lines of a dev score, {file: lines}; `rollouts` are what it sampled. All ranks must call it.

    The log-probabilities are the sampler's. The entropies take a pass without gradient.
    """
    dev = sum(rollouts[1:], rollouts[0])
    G, problems = dev.group_size, dev.problems[:DEV_PROBLEMS]
    kept = [group * G + i for group in range(len(problems)) for i in range(min(G, DEV_SAMPLES))]
    completions = [dev.completions[row] for row in kept]
    prompt_ids, completion_ids = [dev.prompt_ids[row] for row in kept], [each.ids for each in completions]
    settings = (args.temperature, args.micro_batch_tokens)
    _, entropies = score_all(model, prompt_ids, completion_ids, *settings)  # [kept rows, T]
    samples = []
    for row, completion, entropy in zip(kept, completions, entropies.tolist()):
        tokens = {
            "truncated": completion.finish_reason == "length",
            "tokens": [texts[id] for id in completion.ids],
            "logprob": compact(list(map(decimals, completion.logprobs))),
            "entropy": compact(list(map(decimals, entropy[: len(completion.ids)]))),
        }
        samples.append({"completion": dev.texts[row]} | verdict(dev.grades[row]) | tokens)
    each = len(kept) // len(problems)
    lines = [
        {
            "index": index,
            "prompt": problem.prompt,
            "gold": problem.answer,
            "solution": problem.solution,
            "samples": samples[index * each : (index + 1) * each],
        }
        for index, problem in enumerate(problems)
    ]
    counts = group_counts("dev", list(range(len(dev.problems))), dev)
    return {"dev_samples.jsonl": lines, "groups.jsonl": [counts]}


# --- work of hours that goes on where it stopped ------------------------------------------------------------


def folder_of(command: str, settings: dict, *words: str) -> Path:
    """The default --out-dir of a command: a folder that no other settings share."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    model, task = Path(settings["model"].removesuffix(".gguf")), settings["task"].split("/")[-1]
    parts = [*model.parts[-2:], task, *words, digest]
    safe = ["".join(c if c.isalnum() or c in "._" else "-" for c in part).strip("-") for part in parts]
    return Path("runs") / command / "-".join(safe)


def sampling_settings(args, model_name: str, model, tokenizer, sampler, task, problems: list[tuple]) -> dict:
    """Everything that samples depend on, for config.json, but for a command's own flags. A tuple of
    `problems` is all that matters of one."""
    return {
        "model": model_name,
        "model_hash": model_hash(model),
        "task": args.task,
        "problems": len(problems),
        "problems_hash": hashlib.sha256(json.dumps(sorted(problems)).encode()).hexdigest()[:16],
        "samples": args.samples,
        "prompt_template": tokenizer.decode(encode_prompt(tokenizer, "{problem}", args.system_prompt)),
        "temperature": args.temperature,
        "top_p": args.top_p,
        "max_new_tokens": args.max_new_tokens,
        "seed": args.seed,
        "grader": getattr(task, "grader", type(task).__name__),
        "sampler": type(sampler).__name__,
        "rows_at_once": args.rows_at_once,
        "device": device_name(),
        "versions": {name: version(name) for name in ("torch", "transformers", "math-verify")},
    }


def finished_samples(path: Path, places: list[dict], batch: int) -> list[dict]:
    """The rows on the disk, of batches of `batch` rows that are complete. What a kill left of another batch
    is cut off, so that it is sampled again as a whole. `places` has the fields by which to know each row."""
    lines = whole_lines(path)
    if len(lines) < len(places):  # the last batch may be smaller
        lines = lines[: len(lines) - len(lines) % batch]
    try:
        rows = [json.loads(line) for line in lines]
        are_ours = all(place.items() <= row.items() for place, row in zip(places, rows))
    except (ValueError, AttributeError):
        are_ours = False
    if not are_ours or len(lines) > len(places):
        fail(f"{path}: is damaged, or not of these problems; delete it, and everything is sampled again")
    if path.exists():
        os.truncate(path, sum(map(len, lines)))
    return rows

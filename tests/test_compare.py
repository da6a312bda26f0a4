"""The benchmark of speed: the same work for everyone, a floor that counts what it says, and true tables."""

import functools
import io
import json
import re
from dataclasses import replace
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pytest
import torch
from random_model import FEW, Float64, roundings

from benchmarks import compare, contenders
from benchmarks.compare import Contender, Work
from plainrl import sampler, scoring, shared_prompts
from plainrl.models import load_model
from plainrl.sampler import HFSampler
from plainrl.shared_prompts import GrowingCache

TINY = Work("models/tiny", prompts=2, prompt_tokens=20, group_size=3, tokens=8)


def test_prompts_have_the_asked_number_of_tokens():
    """Catches prompts that are longer or shorter than the work says, or the same prompt twice."""
    _, tokenizer = load_model(str(compare.ROOT / "models/tiny"))
    texts = compare.texts(TINY)
    assert [len(tokenizer.encode(text)) for text in texts] == [20, 20] and texts[0] != texts[1]


def test_floor_by_hand(monkeypatch):
    """Catches tokens that are counted twice or not at all.

    Here a product takes as many seconds as it has multiplications.
    """
    monkeypatch.setattr(
        compare, "seconds_of", lambda out, size, count, product, at_least, model: out * size * count
    )
    found = compare.floor(TINY, threads=1)
    model, _ = load_model(str(compare.ROOT / "models/tiny"))
    head = model.get_output_embeddings().weight.numel()
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    layers = sum(layer.weight.numel() for layer in linear) - head
    inputs = 2 * 20 + 6 * 7  # two prompts, and of six completions all tokens but the last
    scored = 2 + 6 * 7  # the first token of a completion is predicted once for its group
    sampling = layers * inputs + head * scored
    training = 3 * sampling
    assert (
        found["sampling"] == sampling
        and found["training"] == training
        and found["step"] == sampling + training
    )
    assert found["scoring"] == training / 3
    low = compare.Floor(TINY, 1, "scoring").work()
    assert (low["seconds"], low["tokens"]) == (training / 3, 6 * 8)
    assert found["gflop"] == round(2 * (sampling + training) / 1e9, 1)


SWITCHED = (
    (sampler, "prefill"),
    (sampler, "DROP_AT"),
    (sampler, "draw"),
    (HFSampler, "generate"),
    (HFSampler, "_generate"),
    (scoring, "prefill"),
    (scoring, "run_rows"),
    (scoring, "common_length"),
    (scoring, "micro_batch_rows"),
    (scoring, "LOGITS_AT_ONCE"),
    (scoring, "checkpoint"),
    (shared_prompts, "run_rows"),
    (shared_prompts, "common_length"),
    (shared_prompts, "LONG_ROW"),
    (GrowingCache, "extend"),
    (GrowingCache, "exchange"),
)


@pytest.fixture(scope="module")
def answers(toy_model):
    """Two pieces of work of ours and of scoring in both ways, and a step with each thing switched off."""
    work = replace(TINY, model=toy_model)
    description = vars(work) | {"prompts": compare.texts(work), "keep_memory": False}
    found = {}
    for name in (
        "score_ours",
        "score_plain",
        "agreement_ours",
        "sample_generate",
        "sample_generate_batch",
        "step_ours",
        "profile_ours",
        *contenders.OFF,
    ):
        with pytest.MonkeyPatch.context() as patch:
            before = [getattr(module, attribute) for module, attribute in SWITCHED]
            for (module, attribute), value in zip(SWITCHED, before):
                patch.setattr(module, attribute, value)  # put back afterwards
            if name in ("agreement_ours", "step_ours", *contenders.OFF):
                patch.setattr("transformers.AutoModelForCausalLM", Float64)
            times = 1 if name in contenders.OFF else 2
            serve = lambda do: found.update({name: [do() for _ in range(times)]})  # noqa: B023, E731
            patch.setattr(contenders, "serve", serve)
            worker = "step_ours" if name in contenders.OFF else name
            getattr(contenders, worker)(description | ({"off": name} if name in contenders.OFF else {}))
            changed = sum(
                getattr(module, attribute) is not value
                for (module, attribute), value in zip(SWITCHED, before)
            )
            assert (changed > 0) == (name in contenders.OFF and name not in ("on-policy", "fused")), name
    return found


def test_contenders_do_their_work(answers):
    """Catches a contender that does less than the others, or nothing."""
    for name, each in answers.items():
        assert all(answer["tokens"] == 6 * 8 for answer in each), name


def test_profile_adds_up(answers):
    """Catches time that is counted twice, in the wrong half of the step, or not at all."""
    parts = {name: answers["profile_ours"][1][name] for name in ("sampling", "training")}
    for part in parts.values():
        kinds = {kind: seconds for kind, seconds in part.items() if kind != "seconds"}
        assert 0 < sum(kinds.values()) < part["seconds"] < 60
        assert {
            "products of the linear layers and the head",
            "products in attention",
            "softmax and log-softmax",
        } < kinds.keys()
    assert {name for name, part in parts.items() if "optimizer" in part} == {"training"}


def test_both_ways_of_scoring_agree(answers):
    """Catches a plain forward pass at other positions or of other completions."""
    ours, plain = answers["score_ours"][0]["logprobs"], answers["score_plain"][0]["logprobs"]
    assert roundings(ours, plain) <= FEW
    assert sum(ours) < -6 * 8 * 2  # of random tokens: more than 2 nats each


def test_scores_and_gradients_are_those_of_the_padded_forward(answers):
    """Catches a sampler's tokens that get other log-probabilities or gradients, in float64."""
    for answer in answers["agreement_ours"]:
        assert 0 < answer["logprob_difference"] <= 1e-10 and 0 < answer["gradient_difference"] <= 1e-10


def test_scores_that_differ_stop_the_measurement(monkeypatch):
    """Catches a comparison of two that do not compute the same, token for token."""
    logprobs = {"ours": [-1.0, -2.0], "plain forward, full logits": [-1.0, -2.00004]}
    monkeypatch.setattr(compare, "Contender", lambda *_, **__: None)
    agreement = {"logprob_difference": 1e-6, "gradient_difference": 2e-6}

    def answers(contenders, *_, **__):
        return {name: {"logprobs": logprobs.get(name)} | agreement for name in contenders}

    monkeypatch.setattr(compare, "side_by_side", answers)
    work = Work(compare.SMOL, 1, 20, 2, 1)
    ((_, found),) = compare.scoring(compare.Args(), {"work": work}, 1)
    assert found["ours"] == agreement | {"largest_difference": pytest.approx(4e-5)}
    assert found["plain forward, full logits"] == agreement
    agreement["gradient_difference"] = 4e-5
    with pytest.raises(
        SystemExit, match="gradient difference of 4.0e-05 to the plain forward pass, more than 3e-05"
    ):
        list(compare.scoring(compare.Args(), {"work": work}, 1))
    agreement["gradient_difference"] = 2e-6
    logprobs["ours"][0] = -1.0002
    with pytest.raises(SystemExit, match="largest difference of 2.0e-04"):
        list(compare.scoring(compare.Args(), {"work": work}, 1))


def test_what_is_switched_off_changes_no_result(answers):
    """Catches an optimisation that is none, and a switch that breaks the step instead of slowing it down."""
    steps = ("step_ours", *contenders.OFF)
    norms = [answer["gradient_norm"] for name in steps for answer in answers[name]]
    assert max(norms) < (1 + 1e-10) * min(norms) and norms[0] > 0


def test_what_is_switched_off_changes_no_result_of_uneven_rows(toy_model, monkeypatch):
    """Catches padding that is seen once some rows have finished."""
    work = replace(compare.SWITCHING["tiny, 8 x 16"][0], group_size=4, model=toy_model)
    description = vars(work) | {"prompts": compare.texts(work), "keep_memory": False}
    monkeypatch.setattr("transformers.AutoModelForCausalLM", Float64)
    norms = [contenders.make_step(description)()["gradient_norm"]]
    for module in scoring, shared_prompts:
        monkeypatch.setattr(module, "run_rows", module.run_rows)  # put back afterwards
    norms.append(contenders.make_step(description | {"off": "end to end"})()["gradient_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-10)


@pytest.mark.parametrize(
    "off, work, owner, name, calls_without",
    [
        # a batch of three rows after the other
        ("refill", replace(TINY, rows_at_once=3), HFSampler, "_generate", 2),
        ("long rows", replace(TINY, tokens=80), shared_prompts, "scaled_dot_product_attention", 0),
    ],
)
def test_what_is_made_for_other_works_is_switched_off_there(
    off, work, owner, name, calls_without, toy_model, monkeypatch
):
    """Catches refill, or attention of long rows, whose switch does nothing in works that need it, or changes
    the result."""
    work = replace(work, model=toy_model)
    description = vars(work) | {"prompts": compare.texts(work), "keep_memory": False}
    monkeypatch.setattr("transformers.AutoModelForCausalLM", Float64)
    for module, attribute in (HFSampler, "generate"), (shared_prompts, "LONG_ROW"):
        monkeypatch.setattr(module, attribute, getattr(module, attribute))  # put back afterwards
    function, calls, norms = getattr(owner, name), [], []

    @functools.wraps(function)
    def counted(*args, **options):
        calls.append(name)
        return function(*args, **options)

    monkeypatch.setattr(owner, name, counted)
    norms.append(contenders.make_step(description)()["gradient_norm"])
    assert len(calls) not in (0, calls_without)
    calls.clear()
    norms.append(contenders.make_step(description | {"off": off})()["gradient_norm"])
    assert len(calls) == calls_without and norms[0] == pytest.approx(norms[1], rel=1e-10)


def test_every_switch_is_known():
    """Catches a row of the table that switches nothing off."""
    for options in compare.SWITCHES.values():
        assert options == {"keep_memory": False} or options["off"] in contenders.OFF
    assert {options.get("off") for options in compare.SWITCHES.values()} - {None} == set(contenders.OFF)
    assert all(what in compare.SWITCHES for _, chosen in compare.SWITCHING.values() for what in chosen)


def test_a_contender_answers_whenever_it_is_asked(tmp_path, monkeypatch):
    """Catches what libraries print in the midst of the answers, and times of another piece of work."""
    monkeypatch.setattr(compare, "HOME", tmp_path)
    contender = Contender("score_plain", TINY, threads=1)
    both = [contender.work(), contender.work()]
    contender.close()
    assert all(
        answer["tokens"] == 6 * 8 and answer["seconds"] > 0 and answer["peak_gb"] > 0.1 for answer in both
    )
    assert (
        both[0]["logprobs"] == both[1]["logprobs"]
        and both[0]["seconds"] != both[1]["seconds"]
        and contender.process.returncode == 0
    )


def test_work_that_is_done_in_a_row(monkeypatch):
    """Catches the sum, or the last alone, for the mean of what a turn takes."""
    contender = Contender.__new__(Contender)
    contender.in_a_row, contender.process = 3, SimpleNamespace(stdin=io.StringIO())
    answers = iter(
        [{"seconds": seconds, "tokens": 6 * seconds, "peak_gb": seconds} for seconds in (9.0, 2.0, 1.0)]
    )
    monkeypatch.setattr(contender, "reply", lambda: next(answers))
    assert (
        contender.work() == {"seconds": 4.0, "tokens": 24.0, "peak_gb": 1.0}
        and contender.process.stdin.getvalue() == "\n\n\n"
    )


def test_a_contender_that_dies_is_named(tmp_path, monkeypatch):
    """Catches a benchmark that hangs, or ends without saying whose words to read."""
    monkeypatch.setattr(compare, "HOME", tmp_path)
    with pytest.raises(SystemExit, match=r"nobody ended with code 1; its last words are in .*nobody\.log"):
        Contender("nobody", TINY, threads=1)
    assert "KeyError: 'nobody'" in (tmp_path / "nobody.log").read_text()


def test_tables_by_hand():
    """Catches ratios turned round, means for medians, the ratio of other things than the title says, and
    seconds of unequal work."""
    seconds = {
        "ours": [1.0, 2.0, 9.0],
        "TRL": [5.0, 6.0, 6.0],
        "TRL at its defaults": [8.0, 8.0, 8.0],
        "ours beside it": [4.0, 4.0, 2.0],
    }
    result = {
        name: {"seconds": values, "peak_gb": len(name), "tokens": [12, 12, 12]}
        for name, values in seconds.items()
    }
    result["floor"] = {"seconds": [0.5, 0.5, 3.0], "tokens": [12, 12, 12]}
    row = compare.steps_table({"work": result}).splitlines()[2]
    assert row == (
        "| work | 2.00 | 6.00 | 8.00 | **3.00 (0.67 to 5.00)** | 2.00 (2.00 to 4.00) | 4.00 (2.00 to 4.00) "
        "| 12.00 (2.00 to 12.00) |"
    )
    row = compare.memory_table({"work": result}).splitlines()[2]
    assert row == "| work | 4.0 GB, 6 tokens/s | 3.0 GB, 2 tokens/s | 19.0 GB, 2 tokens/s |"
    tried = [
        {
            "batch": batch,
            "checkpointing": batch == 8,
            "keep_memory": True,
            "threads": 2,
            "seconds": 4.0 * repetitions,
            "peak_gb": 1,
            "repetitions": repetitions,
        }
        for batch, repetitions in ((4, 1), (8, 3))
    ]
    assert (
        compare.search_table({"work": tried}).splitlines()[2]
        == "| work | 8 | yes | yes | 2 | 12.0 | 3 | 1.0 GB |"
    )
    result["TRL"]["tokens"] = [6, 6, 6]  # the others end earlier
    rows = compare.others_table({"work": result}, "sampling").splitlines()
    assert rows[2] == "| work: ours | 6 | 1.00 (1.00 to 1.00) | 4.0 GB |"
    assert rows[3] == "| work: TRL | 1 | 6.00 (1.33 to 10.00) | 3.0 GB |"
    assert rows[-1] == "| work: floor | 24 | 0.25 (0.25 to 0.50) |  |"
    everything = {"seconds": [2.0], "peak_gb": 1.0, "tokens": [4]}
    found = {
        "a": {
            what: {"with": everything, "without": everything | {"seconds": [2.5], "peak_gb": 1.5}}
            for what in compare.SWITCHES
        },
        "b": {},
    }
    assert compare.switches_table(found).splitlines()[2].endswith("| +25% (+25% to +25%), +0.5 GB |  |")


def test_repetitions_that_count(capsys, monkeypatch):
    """Catches first rounds that are counted, turns that are not taken, and tokens of one repetition alone."""
    monkeypatch.setattr(compare, "PAUSE", 0)
    turns = []

    class Counting:
        def __init__(self, name):
            self.name = name

        def work(self):
            turns.append(self.name)
            return {"seconds": float(len(turns)), "tokens": 10 * len(turns)}

        def close(self):
            turns.append("closed")

    found = compare.side_by_side({name: Counting(name) for name in "ab"}, 2, uncounted=1)
    assert turns == [*"abbaab", "closed", "closed"]
    assert found["a"] == {"seconds": [4.0, 5.0], "tokens": [40, 50]} and found["b"]["tokens"] == [30, 60]


def test_profile_table_by_hand():
    """Catches a floor in the wrong column, and time between operations that is not what they leave."""
    found = {
        "a": {
            "sampling": {"seconds": 3.0, "products": 2.0},
            "training": {"seconds": 9.0, "products": 4.0, "copies": 3.0},
            "floor": {"sampling": 1.0, "training": 3.0},
        }
    }
    assert compare.profile_table(found).splitlines() == [
        "| seconds of a step | a: sampling | a: training |",
        "|---|---|---|",
        "| whole | 3.00 | 9.00 |",
        "| floor | 1.00 | 3.00 |",
        "| products | 2.00 | 4.00 |",
        "| copies | 0.00 | 3.00 |",
        "| between operations: Python, autograd | 1.00 | 2.00 |",
    ]


def test_answers_that_end_differ_in_length():
    """Catches problems that models answer with as many tokens as they may, so that nothing shows what uneven
    lengths cost."""
    work, _ = compare.SWITCHING["tiny, 8 x 16"]
    description = vars(work) | {
        "prompts": compare.texts(work),
        "model": str(compare.ROOT / work.model),
        "keep_memory": False,
    }
    *_, sample = contenders.ours(description)
    lengths = [len(completion.ids) for completion in sample()]
    assert max(lengths) < work.tokens and 2 * min(lengths) < max(lengths)


def test_best_setting_is_that_of_the_committed_search(tmp_path, monkeypatch, capsys):
    """Catches a comparison with anything but TRL's fastest setting (of those as fast the smallest), or with
    none that was searched."""
    with pytest.raises(SystemExit, match="search first"):
        compare.best_of_trl(tmp_path, "work", 2)
    rest = {"keep_memory": True, "threads": 2, "peak_gb": 4.0}
    tried = [
        {"batch": 4, "checkpointing": True, "seconds": 1.9, "repetitions": 1} | rest,
        {"batch": 8, "checkpointing": True, "seconds": 3.0, "repetitions": 3} | rest,
        {"batch": "all", "checkpointing": False, "seconds": 2.0, "repetitions": 3} | rest,
        {"batch": 16, "checkpointing": False, "seconds": 1.99, "repetitions": 3} | rest | {"peak_gb": 4.5},
        {"batch": 2, "checkpointing": False, "seconds": 2.05, "repetitions": 3} | rest | {"peak_gb": 1.0},
    ]
    (tmp_path / "search.json").write_text(
        json.dumps({"machine": {"threads": 2, "cpu": compare.cpu()}, "found": {"work": tried}})
    )
    with pytest.raises(SystemExit, match="nothing about another"):
        compare.best_of_trl(tmp_path, "another", 2)
    with pytest.raises(SystemExit, match="with 8 threads"):
        compare.best_of_trl(tmp_path, "work", 8)
    assert compare.best_of_trl(tmp_path, "work", 2) == {
        "batch": "all",
        "checkpointing": False,
        "keep_memory": True,
        "threads": 2,
    }
    assert not capsys.readouterr().out
    monkeypatch.setattr(compare, "cpu", lambda: "a CPU of another kind")
    compare.best_of_trl(tmp_path, "work", 2)
    assert "that of another CPU" in capsys.readouterr().out


def test_figure_of_growth_is_drawn(tmp_path, monkeypatch):
    """Catches logs that the figure cannot read, and lines that are missing."""
    monkeypatch.setattr(plt, "close", lambda figure: None)
    points = {value: {"ours": 2.0 * value, "floor": value, "peak_gb": 1.0} for value in (1, 2, 4)}
    found = json.loads(json.dumps({"group size": points, "vocabulary": points}))
    compare.plot_growth(found, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 5000
    lines = [[list(line.get_ydata()) for line in axis.lines] for axis in plt.gcf().axes]
    assert lines == [[[2.0, 4.0, 8.0], [1.0, 2.0, 4.0]]] * 2
    monkeypatch.undo()
    plt.close("all")


def test_quick_ends_with_the_ratio(tmp_path, monkeypatch, capsys):
    """Catches a last line that is another, or the ratio upside down."""
    times = {"ours": 2.0, "TRL": 6.0, "floor": 1.0, "TRL at its defaults": 8.0, "ours beside it": 2.0}
    answers = {
        name: {"seconds": [seconds] * 2, "tokens": [10] * 2, "peak_gb": 1.0}
        for name, seconds in times.items()
    }
    monkeypatch.setattr(compare, "HOME", tmp_path)
    monkeypatch.setattr(compare, "SMOL", "models/tiny")
    for name, value in (
        ("make_random_model", None),
        ("steps", [("work", answers)]),
        ("sampling", [("work", answers)]),
    ):
        monkeypatch.setattr(compare, name, lambda *_, value=value, **__: value)
    monkeypatch.setattr(compare, "keep_freed_memory", lambda: None)
    compare.main(compare.Args(quick=True))
    assert capsys.readouterr().out.splitlines()[-1] == "step ratio vs TRL: 3.00"


def test_one_work_is_measured_into_the_log(tmp_path, monkeypatch):
    """Catches a log whose other works are lost or out of order, and works of two machines in one log."""
    monkeypatch.setattr(compare, "HOME", tmp_path)
    monkeypatch.setattr(compare, "SMOL", "models/tiny")
    for name, value in (
        ("make_random_model", None),
        ("show", None),
        ("machine", {"cpu": "this"}),
        ("gflop_per_second", 300),
    ):
        monkeypatch.setattr(compare, name, lambda *_, value=value, **__: value)
    monkeypatch.setattr(compare, "keep_freed_memory", lambda: None)
    found = iter(range(9))
    monkeypatch.setattr(
        compare, "steps", lambda args, works, repetitions: ((name, next(found)) for name in works)
    )
    args, (first, second, *_) = (
        compare.Args(only=("steps",), works="SmolLM2-135M", out=tmp_path),
        compare.STEPS,
    )
    read = lambda: json.loads((tmp_path / "steps.json").read_text())  # noqa: E731
    compare.main(replace(args, works="1 x 8"))
    assert read()["found"] == {second: 0} and read()["measured"][second]["gflop_per_second"] == 300
    compare.main(replace(args, works="SmolLM2-135M, 4 x 8"))
    assert list(read()["found"].items()) == [(first, 1), (second, 0)] and read()["machine"] == {"cpu": "this"}
    compare.main(args)
    assert read()["found"] == {first: 2, second: 3}
    for changed, words in (
        ({"works": "3 x 3"}, "--works 3 x 3: steps has no such work"),
        ({"only": ()}, "--works goes with --only"),
        ({}, "steps.json was measured with cpu this, not other; measure"),
    ):
        monkeypatch.setattr(compare, "machine", lambda args: {"cpu": "other"})
        with pytest.raises(SystemExit, match=re.escape(words)):
            compare.main(replace(args, **changed))
        assert read()["found"] == {first: 2, second: 3}
    compare.main(replace(args, works=""))  # all of it begins anew
    assert read()["machine"] == {"cpu": "other"} and read()["found"][first] == 4


def test_machines_differ_in_what_both_know():
    """Catches a log that is refused for an environment that is not there yet, and one of other versions that
    is not."""
    before = {"cpu": "this", "torch": {"ours": "2.13", "trl": "2.13"}}
    assert not compare.differences(before, {"cpu": "this", "torch": {"ours": "2.13"}})
    assert (
        compare.differences(before, {"cpu": "this", "torch": {"ours": "2.13", "trl": "2.14"}})
        == "torch of trl 2.13, not 2.14"
    )

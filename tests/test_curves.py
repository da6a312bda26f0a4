"""plainrl/curves.py and benchmarks/figures.py: what is drawn where, and pictures that are whole."""

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from mutants import mutant

from benchmarks import figures
from plainrl import curves

ROOT = Path(__file__).resolve().parent.parent
STEP = {
    "reward/mean": 0.1,
    "reward/frac_zero_std": 0.5,
    "rollout/len_mean": 30.0,
    "rollout/frac_unparsed": 0.0,
    "rollout/frac_truncated": 0.0,
    "policy/entropy": 0.5,
    "optim/grad_norm": 1.0,
    "optim/lr": 1e-4,
    "time/train": 1.0,
}


def write_log(folder: Path, *records: dict) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


@pytest.fixture
def drawn(monkeypatch):
    """The panels of every figure that is made: {title: {label: (x, y)}}, filled when it is saved."""
    found, original = {}, curves.save_figure

    def save_figure(figure, path):
        for axis in figure.axes:
            lines = {
                line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axis.lines
            }
            if lines:
                found[axis.get_title()] = lines
                assert axis.get_xlabel() and (axis.get_ylabel() or axis.get_title() in lines)
        return original(figure, path)

    monkeypatch.setattr(curves, "save_figure", save_figure)
    return found


def test_a_run_is_drawn(tmp_path, drawn):
    """Catches a curve in the wrong panel or missing, and a picture that breaks on a step without numbers."""
    write_log(
        tmp_path,
        {"step": 0, "eval/chain/avg@16": 0.2, "eval/chain/frac_unparsed": 0.1, "test/chain/avg@16": 0.2},
        {"step": 1} | STEP,
        {"step": 2}
        | STEP
        | {"reward/mean": 0.3, "policy/entropy": None, "optim/grad_norm": math.nan}
        | {"eval/chain/avg@16": 0.3},
    )
    assert curves.plot_run(tmp_path) == tmp_path / "curves.png"
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG") and not list(tmp_path.glob("*.tmp"))
    assert drawn["reward of the sampled batch"] == {"reward/mean": ([1, 2], [0.1, 0.3])}
    assert drawn["held-out score"] == {"eval/chain/avg@16": ([0, 2], [0.2, 0.3])}
    assert drawn["entropy"] == {"policy/entropy": ([1], [0.5])}
    shares = {"rollout/frac_unparsed", "rollout/frac_truncated", "reward/frac_zero_std"}
    assert drawn["shares"].keys() == shares and len(drawn) == 6


@mutant(
    "partial scores that are not drawn",
    "plainrl/curves.py",
    'fnmatchcase(name, "eval/*/score") and curves[name] in right',
    'fnmatchcase(name, "eval/*/score")',
)
@mutant(
    "scores drawn twice",
    "plainrl/curves.py",
    'not (fnmatchcase(name, "eval/*/score") and curves[name] in right)',
    "True",
)
def test_a_score_is_drawn_where_it_is_not_the_accuracy(tmp_path, drawn):
    """Catches the mean score left out of a run with partial rewards, of which avg@k says next to nothing, and
    one line drawn over another where both are the same."""
    scores = lambda step, score: {  # noqa: E731
        "step": step,
        "eval/mine/score": score,
        "eval/mine/avg@4": 0.25 * step,
        "eval/mine/pass@4": 0.5,
    }
    write_log(tmp_path / "partial", scores(0, 0.0), scores(1, 0.625))
    curves.plot_run(tmp_path / "partial")
    assert drawn["held-out score"]["eval/mine/score"] == ([0, 1], [0.0, 0.625])
    assert list(drawn["held-out score"]) == ["eval/mine/score", "eval/mine/avg@4", "eval/mine/pass@4"]
    write_log(tmp_path / "whole", scores(0, 0.0), scores(1, 0.25))
    curves.plot_run(tmp_path / "whole")
    assert list(drawn["held-out score"]) == ["eval/mine/avg@4", "eval/mine/pass@4"]


def logged(script: str) -> list[str]:
    """Every metric of a committed run that is drawn."""
    return curves.worth_drawing(curves.read_metrics(ROOT / "runs/reference" / script))


@pytest.mark.parametrize(
    "run, panels",
    [
        ("grpo/grpo/seed1", {}),
        ("dapo/dapo/seed1", {"rounds of sampling": ["dapo/rounds"]}),
        ("entropy/siren/seed1", {"tokens that the method singles out": ["siren/frac_selected"]}),
        ("entropy/adaptive_bonus/seed1", {"entropy bonus": ["baseline/bonus"]}),
        (
            "guide/chain-seed0",
            {"ratios of guided tokens": ["guide/gamma", *(f"guide/ratio_q{q}" for q in (10, 50, 90))]},
        ),
        (
            "h1/chain-seed0",
            {
                "reward by horizon": [f"h1/reward_{h}" for h in range(1, 6)],
                "held-out accuracy by horizon": [f"eval/chain-h{h}/avg@16" for h in range(1, 6)],
                "held-out score": [f"eval/chain/{name}@16" for name in ("avg", "pass", "maj")],
            },
        ),
        ("horizons/adarft/seed1", {"target difficulty": ["h1/target"]}),
    ],
)
def test_every_method_has_its_panels(run, panels):
    """Catches a metric of a method that curves.png does not show, in no panel or in two, and six lines in
    one."""
    metrics = logged(run)
    found = {panel.title: panel.metrics for panel in curves.panels_of(metrics)}
    assert {title: found[title] for title in panels} == panels
    shown = list(itertools.chain(*found.values()))
    assert len(shown) == len(set(shown))
    own = {name for name in metrics if name.split("/")[0] not in curves.NOT_A_METHOD} - curves.NOT_DRAWN
    assert own <= set(shown)
    assert max(map(len, found.values())) <= curves.MOST_LINES
    assert own or len(found) == 6


def test_papers_share_the_panels_of_their_kind():
    """Catches a paper whose metrics, under its own name, have panels of their own beside those of their
    kind."""
    own = ["bonus/entropy", "bonus/weight", "clip_cov/frac_dropped", "kl_cov/frac_penalised", "adarft/target"]
    found = curves.panels_of([*own, "adarft/horizon", "e2h/horizon", "adarft/reward_1", "e2h/reward_1"])
    assert {panel.title: len(panel.metrics) for panel in found} == {
        "entropy": 1,
        "tokens that the method singles out": 2,
        "entropy bonus": 1,
        "horizon of the sampled problems": 2,
        "reward by horizon": 2,
        "target difficulty": 1,
    }


def test_a_metric_that_no_panel_names():
    """Catches a new algorithm whose own metrics are drawn nowhere, and the eighth horizon left out."""
    found = curves.panels_of(
        ["reward/mean", "mine/margin", "time/own", *(f"h1/reward_{h}" for h in range(1, 9))]
    )
    assert [(panel.title, len(panel.metrics)) for panel in found] == [
        ("reward of the sampled batch", 1),
        ("reward by horizon", 5),
        ("reward by horizon", 3),
        ("mine/margin", 1),
    ]


def test_half_a_line_is_no_record(tmp_path):
    """Catches a traceback for the log of a run that was killed, and a broken line in the middle read over."""
    write_log(tmp_path, {"step": 1, "reward/mean": 0.5})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "rew')
    assert curves.read_metrics(tmp_path) == {"reward/mean": {1: 0.5}}
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('\n{"step": 3}\n')
    with pytest.raises(ValueError, match="metrics.jsonl: line 2 is no JSON record"):
        curves.read_metrics(tmp_path)


def test_bands_with_a_gap(tmp_path, drawn):
    """Catches an interval end that is None, as of a single problem, and a line that is not the middle."""
    lines = {"model": ([1, 2, 4], [0.2, 0.3, 0.4], [None, 0.2, 0.3], [None, 0.4, 0.5])}
    curves.plot_bands(lines, tmp_path / "bands.png", "k", "pass@k", "title")
    assert drawn == {"title": {"model": ([1, 2, 4], [0.2, 0.3, 0.4])}}
    assert (tmp_path / "bands.png").stat().st_size > 10_000


def test_no_screen_and_no_pyplot(tmp_path):
    """Catches pyplot, which looks for a screen and keeps every figure, and matplotlib imported before it is
    needed."""
    write_log(tmp_path, {"step": 1} | STEP)
    code = (
        "import sys; from pathlib import Path; from plainrl import curves; "
        "assert 'matplotlib' not in sys.modules; "
        "curves.plot_run(Path(sys.argv[1])); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=True)


def test_drawn_again_by_a_command(tmp_path, capsys):
    """Catches a folder without a log that ends in a traceback."""
    write_log(tmp_path / "run", {"step": 1} | STEP)
    curves.main([str(tmp_path / "run")])
    assert capsys.readouterr().out.strip() == str(tmp_path / "run/curves.png")
    with pytest.raises(SystemExit, match="has no metrics.jsonl"):
        curves.main([str(tmp_path)])


# --- this repository's own figures --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "plot",
    [
        figures.plot_reference,
        figures.plot_entropy_methods,
        figures.plot_hard_chains,
        figures.plot_horizons,
        figures.plot_reach,
    ],
)
def test_figures_of_the_committed_logs(plot, monkeypatch, tmp_path):
    """Catches logs that a figure cannot read, a method without a line, and more than five methods in a
    panel."""
    saved = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: saved.append(figure) or path)
    assert plot().parent == figures.REFERENCE
    for axis in saved[0].axes:
        handles, labels = axis.get_legend_handles_labels()
        if axis.lines:
            assert 2 <= len(labels) == len(set(labels)) <= 5 and axis.get_xlabel() and axis.get_ylabel(), (
                axis.get_title()
            )
            colors = [(handle.get_color(), handle.get_linestyle()) for handle in handles]
            assert len(set(colors)) == len(colors), axis.get_title()
    labels = {
        label.split(" (thin")[0] for axis in saved[0].axes for label in axis.get_legend_handles_labels()[1]
    }
    expected = {
        figures.plot_reference: figures.VARIANTS,
        figures.plot_entropy_methods: figures.ENTROPY_METHODS | figures.STRONG,
        figures.plot_hard_chains: figures.HARD_ARMS,
        figures.plot_horizons: figures.SCHEDULES,
        figures.plot_reach: {},
    }
    assert set(expected[plot].values()) <= labels


def test_single_seeds_where_runs_split(tmp_path):
    """Catches a band in place of the seeds, and seeds under another name in the legend."""
    _, (axis,) = curves.new_figure(1, 1)
    figures.draw(axis, [0, 1], [[0.1, 0.9], [0.1, 0.1]], figures.Style("split", curves.BLUE, seeds=True))
    figures.draw(axis, [0, 1], [[0.1, 0.9], [0.1, 0.1]], figures.Style("band", curves.ORANGE))
    assert [list(line.get_ydata()) for line in axis.lines] == [[0.1, 0.5], [0.1, 0.9], [0.1, 0.1], [0.1, 0.5]]
    assert (
        axis.get_legend_handles_labels()[1] == ["split (thin: its seeds)", "band"]
        and len(axis.collections) == 1
    )

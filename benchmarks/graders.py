r"""Precision and recall of graders on the same cases: ours, plain math-verify, lm-eval's and lighteval's.

    python3 -m venv graders-env && graders-env/bin/pip install torch==2.13.0 lighteval==0.13.0 lm-eval==0.4.13
    python benchmarks/graders.py --python graders-env/bin/python

The cases are in tests/data/grading_cases.jsonl: a gold answer, a completion, and whether it is right. The
verdicts are counted in runs/reference/graders.json, and the table in docs/graders.md is made of it by
benchmarks/pages.py. Without --python the graders of the other two packages keep the numbers that they have.

lm-eval's is the string comparison `is_equiv` of its task hendrycks_math, which gets the content of the box.
lighteval's is its metric for formulas and expressions. It and math-verify get the whole completion.
"""

import argparse
import json
import signal
import subprocess
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
CASES = ROOT / "tests/data/grading_cases.jsonl"
RESULTS = ROOT / "runs/reference/graders.json"
SECONDS = 5  # for one case; one that takes longer counts as wrong
NAMES = {"plainrl": "ours", "math-verify": "math-verify", "lm-eval": "lm-eval", "lighteval": "lighteval"}


def read_cases(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def graded(cases: list[dict], grade) -> list[bool]:
    """The verdict on every case. A grader that raises or takes too long says wrong."""
    verdicts = []
    for case in cases:
        signal.alarm(SECONDS)
        try:
            verdicts.append(bool(grade(case["gold"], case["completion"])))
        except Exception:  # another project's grader may raise anything; that is a verdict of no use
            verdicts.append(False)
        finally:
            signal.alarm(0)
    return verdicts


def ours(gold: str, completion: str) -> bool:
    from plainrl.algebra import sympy_algebra
    from plainrl.answers import last_boxed
    from plainrl.equality import same

    answer = last_boxed(completion)
    return bool(answer) and same(gold, answer, sympy_algebra)


def plain_math_verify(gold: str, completion: str) -> bool:
    import math_verify

    parsed = [math_verify.parse(text, parsing_timeout=None) for text in (f"\\boxed{{{gold}}}", completion)]
    return math_verify.verify(*parsed, timeout_seconds=None)


def theirs() -> None:
    """Runs in the other environment, with nothing of this project: cases on stdin, verdicts on stdout."""
    from lighteval.metrics.dynamic_metrics import MultilingualExtractiveMatchMetric
    from lighteval.metrics.utils.extractive_match_utils import ExprExtractionConfig, LatexExtractionConfig
    from lighteval.models.model_output import ModelResponse
    from lighteval.tasks.requests import Doc
    from lm_eval.tasks.hendrycks_math.utils import is_equiv, last_boxed_only_string, remove_boxed

    def lm_eval(gold: str, completion: str) -> bool:
        return is_equiv(remove_boxed(last_boxed_only_string(completion)), gold)

    metric = MultilingualExtractiveMatchMetric(
        gold_extraction_target=(ExprExtractionConfig(), LatexExtractionConfig(boxed_match_priority=0)),
        pred_extraction_target=(ExprExtractionConfig(), LatexExtractionConfig(boxed_match_priority=0)),
    )

    def lighteval(gold: str, completion: str) -> bool:
        doc = Doc(query="", choices=[f"\\boxed{{{gold}}}"], gold_index=0)
        return metric.compute(doc, ModelResponse(text=[completion])) == 1.0

    cases = json.load(sys.stdin)
    said = {}
    for package, grade in (("lm-eval", lm_eval), ("lighteval", lighteval)):
        said[package] = {"version": version(package), "verdicts": graded(cases, grade)}
    print(json.dumps(said))


def counts(cases: list[dict], verdicts: list[bool]) -> dict:
    """Right answers graded right, wrong ones graded right, right ones graded wrong."""
    pairs = [(bool(case["expected"]), verdict) for case, verdict in zip(cases, verdicts, strict=True)]
    return {
        "true": pairs.count((True, True)),
        "false": pairs.count((False, True)),
        "missed": pairs.count((True, False)),
    }


def table() -> str:
    """The block of docs/graders.md."""
    results = json.loads(RESULTS.read_text())
    lines = [
        "| grader | version | precision | recall | wrong answers graded right | right answers graded wrong |",
        "|---|---|---|---|---|---|",
    ]
    for package, entry in results["graders"].items():
        true, false, missed = entry["true"], entry["false"], entry["missed"]
        cells = [
            NAMES[package],
            entry["version"],
            f"{true / (true + false):.3f}",
            f"{true / (true + missed):.3f}",
            f"{false} of {results['wrong']}",
            f"{missed} of {results['right']}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", help="a Python that has lighteval and lm-eval")
    parser.add_argument("--cases", type=Path, help="grade these cases and print the counts, change nothing")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    warnings.simplefilter("ignore")
    cases = [case for case in read_cases(args.cases or CASES) if case["expected"] is not None]
    graders = {
        "plainrl": {"version": "", "verdicts": graded(cases, ours)},
        "math-verify": {"version": version("math-verify"), "verdicts": graded(cases, plain_math_verify)},
    }
    if args.python:
        command = [args.python, __file__, "--theirs"]
        reply = subprocess.run(
            command, input=json.dumps(cases), stdout=subprocess.PIPE, text=True, check=True
        )
        graders |= json.loads(reply.stdout.splitlines()[-1])
    found = {
        package: {"version": entry["version"], **counts(cases, entry["verdicts"])}
        for package, entry in graders.items()
    }
    if args.cases:
        print(json.dumps(found, indent=1))
        return
    before = json.loads(RESULTS.read_text())["graders"] if RESULTS.exists() else {}
    right = sum(case["expected"] for case in cases)
    results = {"right": right, "wrong": len(cases) - right, "graders": before | found}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(table())


def too_slow(*_) -> None:
    raise TimeoutError


if __name__ == "__main__":
    signal.signal(signal.SIGALRM, too_slow)
    if "--theirs" in sys.argv:
        theirs()
    else:
        main()

"""Writes one page that shows runs or evaluations token by token: no server, no network, one file.

    python tools/report.py runs/grpo/chain-seed0
    python tools/report.py runs/grpo/chain-seed0 runs/siren/chain-seed0 --out both.html

Training scripts write the page of their own run at the end. With several runs the page lays them over each
other; runs that differ in the seed alone become one line with a band. See docs/report.md.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where plainrl/ lies

from plainrl.flags import parse
from plainrl.folder import writing
from plainrl.report import make_page, write_page
from plainrl.screen import fail, say


@dataclass
class Args:
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """folders of runs (--out-dir of a training script) or of evaluations (of eval.py)"""
    out: Path | None = None
    """the file to write, a name that ends in .html; one that is there is replaced (default: report.html in
    the first folder)"""


def main(args: Args) -> None:
    if args.out and args.out.suffix != ".html":
        fail(f"--out {args.out}: a page is written; give a name that ends in .html")
    try:
        page = make_page(list(args.runs))
    except ValueError as error:  # no run
        fail(str(error))
    except OSError as error:
        fail(f"{error.filename}: cannot be read ({error.strerror or error})")
    for note in page["notes"]:
        say(f"note: {note}")
    path = args.out or args.runs[0] / "report.html"
    with writing("--out", path, "choose another"):
        write_page(page, path)
    say(f"{path}")


if __name__ == "__main__":
    main(parse(Args, __doc__))


# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "torch==2.13.0", "transformers>=5.16.1,<5.20", "safetensors", "numpy", "tyro", "filelock",
#     "math-verify>=0.9,<0.10", "antlr4-python3-runtime==4.13.2", "matplotlib", "jinja2",
# ]
# ///

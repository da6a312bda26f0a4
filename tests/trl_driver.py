"""What TRL's SFTTrainer makes of two rows: their ids and masks, the loss and its gradient, in float64.

    python tests/trl_driver.py      in an environment with trl==1.16.0 and torch==2.13.0 prints the numbers
                                    that tests/test_sft.py has under TRL

The model is random and the tokenizer that of models/tiny. TRL's loss is made of float32 on purpose; here what
it calls float32 is float64, so that rounding does not show.
"""

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from random_model import gradient, random_model
from transformers import AutoTokenizer

TOKENIZER = str(Path(__file__).resolve().parent.parent / "models/tiny")
PAIRS = [  # prompt and completion
    ("A: Tom has 5 more than 12 pens.", "A=12+5=17\n\\boxed{17}"),
    ("A: Ann has 3 fewer than 40 eggs.\nB: Sue has half of A eggs. Give B in \\boxed{}.", "\\boxed{18}"),
]


def numbers_of(loss: float, vector: torch.Tensor) -> dict:
    """The loss, the norm of its gradient, and the gradient along three directions that differ in every
    weight."""
    places = torch.arange(len(vector), dtype=torch.float64)
    along = [(vector @ torch.cos(places * k)).item() for k in (1, 2, 3)]
    return {"loss": loss, "norm": vector.norm().item(), "along": along}


class Float64Torch:
    """torch, in which float32 is float64."""

    float32 = torch.float64

    def __getattr__(self, name: str):
        return getattr(torch, name)


def main() -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer
    from trl.kernels import chunked_logprob

    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    model = random_model(vocab=512)
    chunked_logprob.torch, torch.Tensor.float = Float64Torch(), torch.Tensor.double
    turns = [
        {
            "prompt": [{"role": "user", "content": prompt}],
            "completion": [{"role": "assistant", "content": completion}],
        }
        for prompt, completion in PAIRS
    ]
    settings = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=2,
        completion_only_loss=True,
        report_to=[],
        dataloader_pin_memory=False,
    )
    trainer = SFTTrainer(model, settings, train_dataset=Dataset.from_list(turns), processing_class=tokenizer)
    inputs = next(iter(trainer.get_train_dataloader()))
    learned = inputs["labels"] != -100
    lengths = sorted(inputs["attention_mask"].sum(dim=1).tolist())
    loss = trainer.compute_loss(model, inputs, num_items_in_batch=learned.sum())
    loss.backward()
    found = numbers_of(loss.item(), gradient(model)) | {"lengths": lengths, "learned": learned.sum().item()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()

"""What TRL's SFTTrainer makes of two rows: their ids and masks, the loss and its gradient, in float64. And
what its GRPOTrainer makes of a batch, and its CPOTrainer with SimPO's loss of pairs.

    python tests/trl_driver.py      in an environment with trl==1.16.0, torch==2.13.0 and pytest prints the
                                    numbers that tests/test_sft.py, test_cispo_gspo.py and test_dto.py have
                                    under TRL

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


POLICY_LOSSES = {  # name: TRL's settings
    "cispo": dict(loss_type="cispo", epsilon_high=1.2),
    "cispo, a high bound": dict(loss_type="cispo", epsilon_high=5.0),
    "gspo": dict(loss_type="grpo", importance_sampling_level="sequence", epsilon=0.1, epsilon_high=0.15),
    "kl": dict(loss_type="grpo", use_bias_correction_kl=False),
    "corrected kl": dict(loss_type="grpo"),
}


class Float64Torch:
    """torch, in which float32 is float64."""

    float32 = torch.float64

    def __getattr__(self, name: str):
        return getattr(torch, name)


def policy_losses() -> dict:
    """The numbers of TRL's GRPOTrainer for the batch of tests/kit.py, which an older policy sampled. Rows are
    left out of the loss where the mean is over tokens: there TRL counts as we do."""
    import kit
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    found, tokenizer = {}, AutoTokenizer.from_pretrained(TOKENIZER)
    for name, settings in POLICY_LOSSES.items():
        with kit.numbers(torch.float64):
            batch = kit.make_batch(old=True, truncated=settings["loss_type"] == "cispo")
        model = random_model()
        config = GRPOConfig(
            output_dir=tempfile.mkdtemp(),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=16,
            num_generations=kit.GROUP,
            temperature=0.8,
            report_to=[],
            **settings,
        )
        rows = Dataset.from_dict({"prompt": ["1+1="] * 16})
        trainer = GRPOTrainer(
            model, lambda **_: [0.0], config, train_dataset=rows, processing_class=tokenizer
        )
        trainer.current_gradient_accumulation_steps = 1
        trainer.beta = 0.3 if "kl" in name else 0.0  # given at first, it would load a reference model
        longest = max(map(len, batch["prompt_ids"]))
        prompts = [[0] * (longest - len(ids)) + ids for ids in batch["prompt_ids"]]
        in_prompt = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in batch["prompt_ids"]]
        inputs = {
            "prompt_ids": torch.tensor(prompts),
            "prompt_mask": torch.tensor(in_prompt),
            "completion_ids": kit.pad(batch["completion_ids"], "cpu")[0],
            "completion_mask": batch["completion_mask"].long(),
            "tool_mask": batch["loss_mask"].long(),
            "advantages": batch["advantages"][:, 0],
            "old_per_token_logps": batch["old_logprobs"],
            "ref_per_token_logps": batch["ref_logprobs"],
            "num_items_in_batch": batch["loss_mask"].sum(),
        }
        loss = trainer._compute_loss(model, inputs)
        loss.backward()
        found[name] = numbers_of(loss.item(), gradient(model))
    return found


def simpo() -> dict:
    """The numbers of TRL's CPOTrainer with SimPO's loss for the batch of tests/kit.py, in which rows 2i and
    2i+1 are the chosen and the rejected one of a pair. beta is 2, gamma 0.5."""
    import kit
    from datasets import Dataset
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    with kit.numbers(torch.float64):
        batch = kit.make_batch()
    model = random_model()
    settings = CPOConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        loss_type="simpo",
        cpo_alpha=0.0,
        beta=2.0,
        simpo_gamma=0.5,
        report_to=[],
    )
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    rows = Dataset.from_dict({"prompt": ["1+1="], "chosen": ["2"], "rejected": ["3"]})
    trainer = CPOTrainer(model, settings, train_dataset=rows, processing_class=tokenizer)
    ids = [prompt + own for prompt, own in zip(batch["prompt_ids"], batch["completion_ids"])]
    labels = [[-100] * len(prompt) for prompt in batch["prompt_ids"]]
    inputs = {}
    for first, side in enumerate(("chosen", "rejected")):
        width = max(map(len, ids[first::2]))
        columns = {"input_ids": [], "attention_mask": [], "labels": []}
        for row in range(first, len(ids), 2):
            padding = width - len(ids[row])
            columns["input_ids"].append(ids[row] + [0] * padding)
            columns["attention_mask"].append([1] * len(ids[row]) + [0] * padding)
            columns["labels"].append(labels[row] + batch["completion_ids"][row] + [-100] * padding)
        inputs |= {f"{side}_{name}": torch.tensor(values) for name, values in columns.items()}
    loss, _ = trainer.get_batch_loss_metrics(model, inputs)
    loss.backward()
    return numbers_of(loss.item(), gradient(model))


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
    print("simpo", json.dumps(simpo()))
    for name, numbers in policy_losses().items():
        print(name, json.dumps(numbers))


if __name__ == "__main__":
    main()

"""A frozen model that compares answers: does one mean the same as the reference? And what it is asked.

What it reads and says is in plainrl/verdicts.py, which also has the task that trains one. Scripts that take
one have the flags --verifier, --verifier-prompt and --verifier-tokens.
"""

from dataclasses import dataclass
from pathlib import Path

from plainrl import ranks
from plainrl.asked import ask, load_asked
from plainrl.sampler import HFSampler
from plainrl.screen import fail, or_fail
from plainrl.verdicts import VERIFIER_PROMPT, last_verdict, verifier_prompt

VERIFIER = "runs/sft/verdicts-seed0/final"  # where `python sft.py --task verdicts` leaves its model


@dataclass(frozen=True)
class Verifier:
    """A frozen model that compares answers, and what it is asked."""

    sampler: HFSampler
    tokenizer: object
    template: str  # with {question}, {reference} and {answer} in it
    max_new_tokens: int

    def tokens(self, text: str) -> int:
        return len(self.tokenizer.encode(text))

    def one_line(self, answer: str) -> str:
        """An answer as it is shown to the model, which must not take its words for the prompt's."""
        for token in self.tokenizer.get_added_vocab():  # special tokens, <|user|> and its like
            answer = answer.replace(token, " ")
        return " ".join(answer.split())

    def verdicts(self, asked: list[tuple[str, str, str]]) -> list[bool | None]:
        """Is the answer the same as the reference? asked: (question, reference, answer) each.

        None where the model comes to no verdict, or its context has no room for the answer. Ranks share what
        is different.
        """
        different = list(dict.fromkeys(asked))
        mine = different[ranks.share(len(different))]
        prompts = [verifier_prompt(self.template, *each) for each in mine]
        said = ask(self.sampler, self.tokenizer, prompts, self.max_new_tokens)
        found = [each and last_verdict(each[0]) for each in said]
        verdict_of = dict(zip(different, ranks.gather(found), strict=True))
        return [verdict_of[each] for each in asked]


def check_verifier(name: str) -> None:
    """Say how the default one is made, where it is not there yet."""
    if name == VERIFIER and not Path(VERIFIER).exists():
        fail(
            f"--verifier {VERIFIER}: is not there yet; `python sft.py --task verdicts --train-size 12288` "
            "makes it; or give another model that can compare answers"
        )


def load_verifier(args) -> tuple:
    """The model of --verifier, which stays as it is, and the verifier that asks it. What cannot be one ends
    the run in one line."""
    model, tokenizer, sampler = load_asked("--verifier", args.verifier, args.verifier_tokens)
    if args.verifier_prompt is not None:
        # The text itself takes the place of the path: config.json keeps it, and a run that goes on finds the
        # same one or refuses.
        args.verifier_prompt = or_fail(read_template, args.verifier_prompt)
    template = args.verifier_prompt or VERIFIER_PROMPT
    return model, Verifier(sampler, tokenizer, template, args.verifier_tokens)


def read_template(path: Path) -> str:
    """The text of --verifier-prompt. Raises ValueError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--verifier-prompt {path}: cannot be read ({error}); give a text file") from None
    for place in ("{reference}", "{answer}"):
        if place not in text:
            raise ValueError(f"--verifier-prompt {path}: has no {place}; write it where it belongs")
    return text

r"""Verdicts: does an answer mean the same as the reference? A task from which a model learns to verify.

    Question: Give 30/40 in lowest terms.        3/4 is 3/4
    Reference: 3/4                               Final Decision: Yes
    Answer: 75%
    The same? End with Final Decision: Yes or No.

papers/general_reasoner.py takes its rewards from such a model. No model has written a line of this task. An
answer is the reference's number, or one that went wrong in one way, and then either is spelled in one of
several ways. So how an answer is spelled says nothing about whether it is right.
"""

import random
import re
from dataclasses import dataclass, field
from fractions import Fraction

from plainrl.tasks import Grade, Problem, problem_rng, split_by_hash
from plainrl.world import ChainTask

VERIFIER_PROMPT = """Question: {question}
Reference: {reference}
Answer: {answer}
The same? End with Final Decision: Yes or No."""
VERDICT = re.compile(r"Final Decision:\s*(Yes|No)\b")
SPLITS = {"train": range(0, 80), "dev": range(80, 90), "test": range(90, 100)}  # of the references
DENOMINATORS = (2, 4, 5, 8, 10, 20, 25)  # whose decimals end


# --- what a verifier reads and says -------------------------------------------------------------------------


def verifier_prompt(template: str, question: str, reference: str, answer: str) -> str:
    """The template with its three places filled, all at once: an answer that holds "{reference}" keeps it.

    >>> verifier_prompt("{reference} or {answer}?", "How many?", "3", "{reference}")
    '3 or {reference}?'
    """
    texts = {"question": question, "reference": reference, "answer": answer}
    return re.sub(r"\{(question|reference|answer)\}", lambda place: texts[place[1]], template)


def last_verdict(text: str) -> bool | None:
    """Whether the last verdict in a verifier's text is a yes. None where there is none.

    >>> last_verdict("If so, Final Decision: Yes. But it is not. Final Decision: No"), last_verdict("Yes")
    (False, None)
    """
    found = VERDICT.findall(text)
    return found[-1] == "Yes" if found else None


# --- right and wrong answers --------------------------------------------------------------------------------


def plain(value: Fraction) -> str:
    return str(value)  # 3/4, or 12


def known_spellings(value: Fraction) -> list[str]:
    r"""Ways to write a number that a verifier is trained on.

    >>> known_spellings(Fraction(3, 4))
    ['3/4', '0.75', '75%', '\\frac{3}{4}', 'x = 3/4', '$3/4$']
    """
    text, top, bottom = plain(value), value.numerator, value.denominator
    if bottom == 1:
        return [text, f"{text}.0", rf"\({text}\)", f"{text} in all", f"x = {text}", f"${text}$"]
    return [
        text,
        f"{float(value):.10g}",
        f"{float(100 * value):.10g}%",
        rf"\frac{{{top}}}{{{bottom}}}",
        f"x = {text}",
        f"${text}$",
    ]


def new_spellings(value: Fraction) -> list[str]:
    r"""Ways that it is not trained on.

    >>> new_spellings(Fraction(3, 4))
    ['6/8', '\\text{3/4}', 'the answer is 3/4', '3/4 exactly']
    """
    text = plain(value)
    equal = f"{2 * value.numerator}/{2 * value.denominator}"
    return [equal, rf"\text{{{text}}}", f"the answer is {text}", f"{text} exactly"]


SPELLINGS = {"known": known_spellings, "new": new_spellings}


def mistake(value: Fraction, rng: random.Random) -> Fraction:
    """Another number than this one, above 0: half of the time one digit is another, else the sign is, or it
    is ten times too large or small, one too large or small, or upside down."""
    digits = list(str(value.numerator))
    place = rng.randrange(len(digits))
    digits[place] = rng.choice("0123456789".replace(digits[place], ""))
    if rng.random() < 0.5 and any(digit != "0" for digit in digits):
        return Fraction(int("".join(digits)), value.denominator)
    upside_down = 1 / value
    wrong = [-value, 10 * value, value / 10, value + 1, value - 1, upside_down]
    return rng.choice([each for each in wrong if each not in (value, 0) and 10**9 % each.denominator == 0])


# --- the task -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """A question with its right answer, and an answer that means the same or does not."""

    question: str
    reference: str
    answer: str
    value: Fraction  # what the answer means
    same: bool


@dataclass
class VerdictTask:
    """Half of the pairs are about the chain world's questions, half about fractions; half of each are right.

    rules: known, new; how answers are spelled.

    No two splits share a reference.
    """

    rules: str = "known"
    name: str = field(default="verdicts", init=False)
    grader = "verdicts"

    def __post_init__(self):
        if self.rules not in SPELLINGS:
            raise ValueError(f"--task verdicts: rules={self.rules} is not one of {', '.join(SPELLINGS)}")
        self.name = "verdicts" if self.rules == "known" else f"verdicts-{self.rules}"

    def pair(self, split: str, index: int, seed: int) -> Pair:
        """A pure function of its arguments."""
        rng = problem_rng(SPLITS, split, index, seed)
        while True:
            question, value = some_question(rng)
            if split_by_hash(plain(value), SPLITS) == split:
                break
        same = rng.random() < 0.5
        meant = value if same else mistake(value, rng)
        answer = rng.choice(SPELLINGS[self.rules](meant))
        return Pair(question, plain(value), answer, meant, same)

    def problem(self, split: str, index: int, seed: int) -> Problem:
        pair = self.pair(split, index, seed)
        verdict = "Yes" if pair.same else "No"
        compared = f"{plain(pair.value)} {'is' if pair.same else 'is not'} {pair.reference}"
        return Problem(
            prompt=verifier_prompt(VERIFIER_PROMPT, pair.question, pair.reference, pair.answer),
            answer=verdict,
            solution=f"{compared}\nFinal Decision: {verdict}",
            source="verdicts",
            index=index,
        )

    def grade(self, completion: str, problem: Problem) -> Grade:
        """Right: the last verdict is that of the answer's number."""
        yes = last_verdict(completion)
        if yes is None:
            return Grade(False, 0.0, None, "no_verdict")
        verdict = "Yes" if yes else "No"
        right = verdict == problem.answer
        return Grade(right, float(right), verdict, "correct" if right else "wrong")


def some_question(rng: random.Random) -> tuple[str, Fraction]:
    """A question and the number that answers it."""
    if rng.random() < 0.5:
        task = ChainTask(horizon=rng.randint(1, 3))
        problem = task.problem("sft", rng.randrange(10**6), 0)  # a split that no other script trains on
        return problem.prompt, Fraction(problem.answer)
    bottom = rng.choice(DENOMINATORS)
    top = rng.choice([top for top in range(1, 100) if Fraction(top, bottom).denominator == bottom])
    more = rng.randint(2, 5)
    return f"Give {top * more}/{bottom * more} in lowest terms.", Fraction(top, bottom)

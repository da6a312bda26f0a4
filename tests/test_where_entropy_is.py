"""benchmarks/where_entropy_is.py: what is possible, the roles of positions, and the split of the entropy."""

import json
from pathlib import Path

import pytest
import torch
from mutants import mutant

from benchmarks import where_entropy_is as where
from plainrl.models import load_model
from plainrl.rollout import encode_prompt
from plainrl.tasks import Problem, load_task

ROOT = Path(__file__).resolve().parent.parent
IDS = {text: id for id, text in enumerate(["0", "1", "2", "3", "5", "8", "13", "+", "-", "*", "=", "\n"])}
END = 99


@pytest.fixture
def fourteen():
    """What can follow a text that makes 14, or anything else, from 8, 5 and 1."""
    return where.countdown_continuations(Problem(prompt="", answer="14", options=("8", "5", "1")))


@pytest.fixture
def chain():
    """What can follow a text that works on 47 + 5, then - 3."""
    solution = "A=47+5=52\nB=52-3=49\n\\boxed{49}"
    return where.chain_continuations(Problem(prompt="", answer="49", solution=solution))


def test_what_can_follow_in_countdown(fourteen):
    """Catches a continuation that is not possible, an end that is missing, and work that goes on after an
    error."""
    assert {rest[:1] for rest in fourteen("")} == {"8", "5", "1"}
    assert {rest[:1] for rest in fourteen("8")} == {"+", "-", "*"}
    assert {rest.split("\n")[0] for rest in fourteen("8+5=1")} == {"3"}
    assert set(fourteen("8+5=13\n")) == {"13+1=14", "1+13=14", "13-1=12", "13*1=13", "1*13=13"}
    assert fourteen("8+5=13\n13+1=14") == [""]
    assert fourteen("8+5=14") == fourteen("8+8") == fourteen("8+5=13\n13+1=14\n") == []


@mutant(
    "the value of the problem",
    "benchmarks/where_entropy_is.py",
    'value = line.rpartition("=")[2]',
    "value = value",
)
@mutant(
    "the right result",
    "benchmarks/where_entropy_is.py",
    "calculated(*written.groups())",
    "steps[len(lines)][4]",
)
@mutant(
    "minus is plus",
    "benchmarks/where_entropy_is.py",
    "OPERATIONS[sign](int(left)",
    'OPERATIONS["+"](int(left)',
)
def test_what_can_follow_in_a_chain(chain):
    """Catches a line that does not go on from the value before, a result that is not that of what is written,
    and a second way where there is one."""
    assert chain("") == ["A=47+5="] and chain("A=47") == ["+5="]
    assert chain("A=47+5=") == ["52\n"] and chain("A=47+5=5") == ["2\n"] and chain("A=47+5=52") == ["\n"]
    assert chain("A=47-") == [] and chain("A=47-5=") == ["42\n"] and chain("A=47+5=6") == []
    assert chain("A=47+5=62\n") == ["B=62-3="] and chain("A=47+5=62\nB=62-3=") == ["59\n"]
    assert chain("A=47+5=52\nB=52-3=49\n") == ["\\boxed{49}"] and chain(
        "A=47+5=52\nB=52-3=49\n\\boxed{49}"
    ) == [""]
    assert chain("A=47+5=52\nB=52-3=49\n\\boxed{49}\n") == chain("so\n") == chain("A=47+5=?=") == []


@pytest.mark.parametrize(
    "left, sign, right, result",
    [("7", "/", "2", "3"), ("7", "/", "0", "?"), ("3", "-", "5", "-2"), ("4", "*", "5", "20")],
)
def test_calculated(left, sign, right, result):
    """Catches halves that are rounded otherwise than the world does, and a division by zero."""
    assert where.calculated(left, sign, right) == result


@mutant(
    "the end is not possible", "benchmarks/where_entropy_is.py", '(ends if "" in rests else set())', "set()"
)
@mutant(
    "one letter only", "benchmarks/where_entropy_is.py", "min(longest, len(rest)) + 1)", "1 + bool(rest))"
)
def test_possible_tokens():
    """Catches a token of two letters that is overlooked, and an end where none can be."""
    assert where.possible_tokens(["13+1", "1*8"], IDS, {END}) == {IDS["1"], IDS["13"]}
    assert where.possible_tokens([""], IDS, {END}) == {END} and where.possible_tokens([], IDS, {END}) == set()


@mutant("no choice", "benchmarks/where_entropy_is.py", 'return "choice"', 'return "format"')
@mutant(
    "every letter is a choice",
    "benchmarks/where_entropy_is.py",
    "rest[:longest] for rest in rests",
    "rest for rest in rests",
)
@mutant("results of the next line", "benchmarks/where_entropy_is.py", "\\d+=\\d*$", "\\d+=.*")
def test_roles(fourteen, chain):
    """Catches a position that is called otherwise than what it is for."""
    roles = {
        text: where.role(text, fourteen(text), 1)
        for text in ("", "8", "8+", "8+5", "8+5=", "8+5=1", "8+5=13")
    }
    assert list(roles.values()) == ["choice", "choice", "choice", "format", "result", "result", "format"]
    assert where.role("8+5=13\n13+1=14", fourteen("8+5=13\n13+1=14"), 1) == "format"
    assert where.role("8+5=13\n13+", fourteen("8+5=13\n13+"), 1) == "format"  # the 1 that is left
    assert where.role("8+5=14", [], 1) == "after an error"
    both = ["15+1=16", "12+1=13"]
    assert where.role("", both, 1) == "format" and where.role("", both, 2) == "choice"
    assert where.role("A=47+5=", chain("A=47+5="), 1) == "result"


@mutant(
    "another temperature",
    "benchmarks/where_entropy_is.py",
    "score(model, prompt_ids, completion_ids, 1.0, keep)",
    "score(model, prompt_ids, completion_ids, 2.0, keep)",
)
def test_all_logprobs_are_those_of_a_plain_forward(toy_model):
    """Catches distributions of other positions than those of the completions' tokens."""
    model, tokenizer = load_model(toy_model)
    prompt = encode_prompt(tokenizer, "A: Tom has 5 more than 12 pens.")
    rows = [tokenizer.encode("A=12+5=17"), tokenizer.encode("A=1")]
    found = where.all_logprobs(model, [prompt, prompt], rows)
    expected = []
    for row in rows:
        with torch.no_grad():
            logits = model(torch.tensor([prompt + row])).logits[0, len(prompt) - 1 : -1]
        expected.append(torch.log_softmax(logits, dim=-1))
    assert torch.allclose(found, torch.cat(expected), atol=1e-5)


@mutant(
    "impossible tokens count for the role too",
    "benchmarks/where_entropy_is.py",
    '+= each["entropy"] - each["impossible"]',
    '+= each["entropy"]',
)
@mutant(
    "mass after an error too",
    "benchmarks/where_entropy_is.py",
    'if each["role"] != "after an error"]',
    "if True]",
)
def test_shares():
    """Catches shares that do not add up to the entropy."""
    rows = [
        ("choice", 1.0, 0.25, 0.1),
        ("result", 0.5, 0.5, 0.3),
        ("format", 0.5, 0.0, 0.0),
        ("after an error", 2.0, 0.0, 1.0),
    ]
    found = [dict(zip(("role", "entropy", "impossible", "mass"), row)) for row in rows]
    result = where.shares(found)
    assert result["entropy"] == 1.0 and result["tokens"] == 4
    assert result["shares"] == {
        "choice": 0.1875,
        "result": 0.0,
        "format": 0.125,
        "impossible tokens": 0.1875,
        "after an error": 0.5,
    }
    assert result["mass on impossible tokens"] == pytest.approx(0.4 / 3)


@pytest.mark.parametrize(
    "spec, model", [("countdown", "models/countdown"), ("chain?horizon=2", "models/tiny")]
)
def test_the_premise_of_each_world(spec, model):
    """Catches a start model of countdown whose entropy is error, and a chain world in which it is choice."""
    args = where.Args(models=(), problems=8, samples=4)
    found = where.positions(*load_model(str(ROOT / model)), load_task(spec), args)
    result = where.shares(found)
    assert sum(result["shares"].values()) == pytest.approx(1, abs=1e-4)
    assert all(0 <= each["impossible"] <= each["entropy"] + 1e-5 for each in found)
    if spec == "countdown":
        assert result["shares"]["choice"] > 0.8
    else:
        assert result["shares"]["choice"] == 0 and result["shares"]["impossible tokens"] > 0.25


def test_the_command(tmp_path, capsys):
    """Catches a command that prints no table, lists a position twice, or takes a task that it knows nothing
    about."""
    out = tmp_path / "new" / "where.json"
    where.main(where.Args((str(ROOT / "models/countdown"),), problems=3, samples=4, top=5, out=out))
    shown = capsys.readouterr().out
    assert "entropy, nats a token" in shown
    (result,) = json.loads(out.read_text()).values()
    assert len({(each["prompt"], each["text"]) for each in result["top"]}) == 5
    entropies = [each["entropy"] for each in result["top"]]
    assert entropies == sorted(entropies, reverse=True)
    with pytest.raises(SystemExit, match="what is possible is known of countdown and chain only"):
        where.main(where.Args((str(ROOT / "models/tiny"),), task="gym:chain_sum"))

"""Tests of tools/decontaminate.py: which training problems share a run of words with an evaluation set."""

import doctest
import gzip
import json
import random
import sys
from types import SimpleNamespace

import pytest
from mutants import mutant
from test_files import dapo, lines_of

from plainrl import files
from plainrl.tasks import BOXED_INSTRUCTION, load_task
from tools import decontaminate
from tools.decontaminate import Args, Sets, find_wording, main, ngrams, tokens_of, words_of

EGGS = "Janet's ducks lay 16 eggs per day. She eats three for breakfast every morning and bakes 4 muffins."
PENS = "Ann has 12 pens, Bob has 7 pens more than Ann, and Eve has half of what both have together. How many?"


def found(measured: str, training: str, n: int = 13) -> tuple[bool, str] | None:
    """Whether it is a whole copy, and the shared words; None where nothing is shared."""
    sets = Sets(n)
    sets.add("set", [measured])
    shared = sets.shared(training)
    return (shared[0][1], shared[0][3]) if shared else None


def run(
    folder, rows: list | str | bytes, measured: list[dict], name: str = "train.jsonl", settings="", **flags
):
    """The kept rows and the report, of a training file with this content."""
    content = lines_of(rows) if isinstance(rows, list) else rows
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    (folder / "measured.jsonl").write_text(lines_of(measured))
    out = folder / "clean.jsonl"
    for path in (out, folder / "clean.report.txt"):
        path.unlink(missing_ok=True)
    flags = {"against": (f"jsonl:{folder / 'measured.jsonl'}",), **flags}
    main(Args(task=f"jsonl:{folder / name}{settings}", out=out, **flags))
    return [json.loads(line) for line in out.read_text().splitlines()], (
        folder / "clean.report.txt"
    ).read_text()


def asked(*prompts: str) -> list[dict]:
    return [{"prompt": prompt, "answer": str(i)} for i, prompt in enumerate(prompts)]


def refused(folder, rows, measured, **flags) -> str:
    with pytest.raises(SystemExit) as stopped:
        run(folder, rows, measured, **flags)
    return str(stopped.value)


def test_doctests():
    """Catches examples that are wrong."""
    assert doctest.testmod(decontaminate).failed == 0


# --- what is shared -----------------------------------------------------------------------------------------


@mutant(
    "a run of words is one longer",
    "tools/decontaminate.py",
    '" ".join(words[start : start + n])',
    '" ".join(words[start : start + n + 1])',
)
@mutant(
    "the last run of words is forgotten",
    "tools/decontaminate.py",
    "for start in range(len(words) - n + 1)",
    "for start in range(len(words) - n)",
)
def test_ngrams_by_brute_force():
    """Catches n off by one, at the end of a text above all, and a share or a run that is not what both have:
    against two loops over lists of words."""
    rng = random.Random(0)
    for _ in range(300):
        n = rng.randint(1, 5)
        measured, training = ([rng.choice("abc") for _ in range(rng.randint(1, 12))] for _ in range(2))
        own = [measured[i : i + n] for i in range(len(measured) - n + 1)]
        theirs = [training[i : i + n] for i in range(len(training) - n + 1)]
        both = {tuple(gram) for gram in own if gram in theirs}
        sets = Sets(n)
        sets.add("set", [" ".join(measured)])
        shared = sets.shared(" ".join(training))
        if measured == training:
            assert [(is_copy, share) for _, is_copy, share, _ in shared] == [(True, 1.0)]
        elif not both:
            assert shared == []
        else:
            [(_, is_copy, share, words)] = shared
            assert not is_copy and share == len(both) / len({tuple(gram) for gram in own})
            run = words.split()
            assert len(run) >= n and any(run == training[i : i + len(run)] for i in range(len(training)))
            assert all(run[i : i + n] in own for i in range(len(run) - n + 1))


def test_the_boundary_at_n():
    """Catches n off by one on real sentences: 13 words in a row are a find, 12 are none."""
    words = words_of(tokens_of(PENS))
    for length, is_found in ((13, True), (12, False)):
        training = "Here is another one. " + " ".join(words[3 : 3 + length]) + " xylophones?"
        assert (found(PENS, training) is not None) == is_found
        assert not is_found or found(PENS, training) == (False, " ".join(words[3:16]))


@mutant(
    "words in any order",
    "tools/decontaminate.py",
    "for start in range(len(words) - n + 1)]",
    "for words in [sorted(words)] for start in range(len(words) - n + 1)]",
)
def test_the_order_of_words_matters():
    """Catches bags of words: the same words otherwise."""
    words = words_of(tokens_of(PENS))
    assert found(PENS, " ".join(words[::-1])) is None and found(PENS, " ".join(sorted(words)), 3) is None
    halves = words[10:] + words[:10]
    assert found(PENS, " ".join(halves)) is None and found(PENS, " ".join(halves), 10) is not None


@mutant("signs do not count in a copy", "tools/decontaminate.py", r"+|[^\w\s.,;:", r"+|[^\w\W.,;:")
@mutant("numbers are no words", "tools/decontaminate.py", "if token[0].isalnum()", "if token[0].isalpha()")
@mutant(
    "what shares words is a copy",
    "tools/decontaminate.py",
    "(number, False, len(",
    "(number, True, len(",
)
def test_a_copy_is_a_copy_in_its_numbers_and_signs():
    """Catches a near-duplicate with another number or another sign that is called exact: it is another
    problem with another answer. Where enough words are the same it is a find, but no copy."""
    for measured, training in (
        ("What is 17 + 5?", "What is 18 + 5?"),
        ("What is 17 + 5?", "What is 17 - 5?"),
        ("What is 1.5 + 5?", "What is 15 + 5?"),
        ("What is $x^{12}$?", "What is $x^1 2$?"),
        ("What is 5!?", "What is 5?"),
    ):
        assert found(measured, training) is None
        assert found(measured, measured) is not None and found(measured, measured)[0]
    other = EGGS.replace("4 muffins", "5 muffins")
    assert found(EGGS, other) == (False, " ".join(words_of(tokens_of(EGGS))[:-2]))
    assert found(EGGS, EGGS)[0]
    assert found(EGGS, EGGS.replace("16", "17")) is not None  # 14 words follow, and 12 up to the 4
    assert found(EGGS, EGGS.replace("16", "17").replace("4 muffins", "5 muffins")) is None


@mutant("long numbers are one word", "tools/decontaminate.py", 'rf"{DIGITS}|', 'rf"')
@mutant("a times of LaTeX is a word", "tools/decontaminate.py", "(?:times|cdot)", "(?:cdot)")
@mutant(
    "typed signs of times differ", "tools/decontaminate.py", ".casefold().translate(SIGNS)", ".casefold()"
)
@mutant(
    "capitals count",
    "tools/decontaminate.py",
    "text.lower() if text.isascii() else",
    "text if text.isascii() else",
)
@mutant("spacing of LaTeX is words", "tools/decontaminate.py", 'NOT_ASKED.sub(" ", text)', "text")
def test_what_does_not_matter():
    """Catches a copy that is missed: other capitals, another typography, LaTeX that looks the same."""
    for one, other in (
        (EGGS, EGGS.upper()),
        (EGGS, EGGS.replace("'", "’").replace(" ", "\n  ").replace(".", " .")),
        ("He pays 1,000,000 dollars", "He pays $1{,}000{,}000$ dollars"),
        ("He pays 1,000 dollars", r"He pays $1\,000$ dollars"),
        ("He pays 1,000 dollars", "He pays 1000 dollars"),
        ("He pays 12,345,678 dollars", "He pays 12345678 dollars"),
        (r"Sum \{100,200,300\}", r"Sum $\{100, 200, 300\}$"),
        (r"Find $2 \times 3\cdot4$", "find 2 × 3⋅4"),
        (r"Is $3\leq x$ and $x \ne 5$?", "Is 3 ≤ x and x ≠ 5?"),
        (r"Is $3\leqslant x\left(1, \ldots, n\right)$?", r"Is $3 \le x (1, ..., n)$"),
        (r"Find $\dfrac{1}{2}+x$.", r"Find \( \frac {1} {2} + x \)"),
        (r"Let $a,\,b\; \text{and}\quad c$", r"Let $a$, $b$ and $c$"),
        (r"\left( a + b \right)", "(a+b)"),
        (r"Let $x = \frac12$.", r"let x = \dfrac{1}{2}"),
        ("Ｆｉｎｄ　x", "find x"),
        (f"What is 2? {BOXED_INSTRUCTION}", "What is 2?"),
        (dapo("What is 2?"), "what is 2"),
        ("Größe", "GRÖSSE"),
    ):
        assert tokens_of(one) == tokens_of(other), (one, other)
        assert found(one, other)[0]
    assert tokens_of("f(1,20)") == ["f", "(", "1", "20", ")"] and tokens_of("3.50") != tokens_of("350")
    assert tokens_of("1234.56789") == ["1", "234.56789"] and tokens_of("1,20") != tokens_of("120")
    assert words_of(tokens_of(r"3 \times \frac12, 7 times")) == ["3", "1", "2", "7", "times"]
    assert words_of(tokens_of("小明有3个苹果")) == list("小明有3个苹果")


@mutant(
    "each Chinese character is a word",
    "tools/decontaminate.py",
    "1 if IS_ALONE(word) else 2 for",
    "2 if IS_ALONE(word) else 2 for",
)
def test_two_chinese_characters_are_one_word():
    """Catches 13 characters that every second problem has, and texts of both scripts that are cut wrongly:
    against all runs of enough words, of which the shortest from each place counts."""
    phrase, others = "已知函数的定义域为实数集求下列各式的值并且说明理由", "甲乙丙丁戊己庚辛壬癸子丑寅卯辰"
    measured = phrase[:25] + others
    assert found(measured, "试问" + phrase[:25] + "天地玄黄宇宙洪荒") is None
    assert found(measured, "试问" + phrase[:25] + others[0] + "天地玄黄")[1].replace(" ", "") == measured[:26]
    rng = random.Random(0)
    for _ in range(300):
        n, words = rng.randint(1, 5), [rng.choice("ab数学") for _ in range(rng.randint(1, 12))]
        size = {"a": 1, "b": 1, "数": 0.5, "学": 0.5}
        wanted = []
        for start in range(len(words)):
            ends = range(start + 1, len(words) + 1)
            enough = [words[start:end] for end in ends if sum(size[word] for word in words[start:end]) >= n]
            wanted += [" ".join(enough[0])] if enough else []
        assert ngrams(words, n) == wanted


PRIMES = "What is the sum of the first 10 primes?"


@mutant(
    "a short problem is found by its first words",
    "tools/decontaminate.py",
    "if words[start : start + len(whole)] == whole:",
    "if True:",
)
@mutant(
    "any words of a few are looked for",
    "tools/decontaminate.py",
    "[] if own else ngrams(words, min(WHOLE, self.n))",
    "[] if own else ngrams(words, min(1, self.n))",
)
@mutant(
    "short problems are not looked for inside a row",
    "tools/decontaminate.py",
    " if self.heads else ()",
    " if () else ()",
)
def test_a_short_problem_is_found_inside_a_row():
    """Catches a short problem with a word before or after it that is missed, half of one that is a find, and
    "What is 2+3?" found in every text that has it."""
    whole = "what is the sum of the first 10 primes"
    for training in (f"Question: {PRIMES}", f"{PRIMES} Show your work.", f"Question: {PRIMES} Show it."):
        assert found(PRIMES, training) == (False, whole)
    assert found(PRIMES, PRIMES.lower()) == (True, whole)
    for training in (PRIMES.replace("10", "11"), PRIMES.replace("primes", "odd primes"), whole[:-7]):
        assert found(PRIMES, f"Question: {training}") is None
    assert found("Find 2, 3 and 5.", "Question: Find 2, 3 and 5.") is not None  # five words
    assert found("What is 2+3?", "what is 2 + 3") == (True, "what is 2 3")
    assert found("What is 2+3?", "What is 2+3? And " + PENS) is None
    assert found("x y z", "a x y z b", 3) is not None and found("x y", "a x y b", 3) is None
    assert found("求前十个质数的总和", "问题:求前十个质数的总和。") is None  # 9 of the 10 characters
    assert found("求前十个质数的平方和", "问题:求前十个质数的平方和。") is not None
    assert found("?!", "??!") is None or not found("?!", "Other")
    assert found("...", "???") is None  # nothing in it to compare


FORM = "Think step by step and give the result as a whole number without any unit at the end."
NAMES = ("Ann", "Bob", "Eve", "Tom", "Zoe", "Max")
TEMPLATES = (  # each begins with its name: all other words are those of the template
    "{} buys a bag of apples at the market and shares them fairly with two friends. How many has each?",
    "{} drives to the sea at a steady speed and is there before noon. How long does the way back take?",
    "{} reads a thick book in the summer and a thin one in the winter. How many pages is that in all?",
)
TEMPLATED = [template.format(name) for template in TEMPLATES for name in NAMES]
PASSAGE = (
    "The mill by the river was built by two brothers who ground wheat there for all farms of the valley."
)
PASSAGED = [
    f"{PASSAGE} {question}"
    for question in ("Who built it?", "What was ground?", "Where is it?", "For whom?", "How many were they?")
]


@mutant("a set's wording is a find", "tools/decontaminate.py", "if times[gram] > most:", "if False:")
def test_the_wording_of_a_set_is_no_find():
    """Catches a training file that loses every problem since both files ask for the form of the answer."""
    questions = [
        f"A farm has {n} cows and sells {2 * n} of them to number {n * n}. {FORM}" for n in range(20)
    ]
    sets = Sets(13)
    sets.add("set", questions)
    assert sets.wording["set"] == {" ".join(words_of(tokens_of(FORM))): 20}
    assert sets.shared(f"What is 7 times 8? {FORM}") == []
    for n, question in enumerate(questions):
        assert [number for number, is_copy, _, _ in sets.shared(question) if is_copy] == [n]
    few = Sets(13)
    few.add("set", questions[:4])  # a fifth problem would make it the wording
    assert not few.wording["set"] and len(few.shared(f"What is 7 times 8? {FORM}")) == 4


@mutant(
    "a problem of wording alone cannot be found",
    "tools/decontaminate.py",
    "for head in [] if own else ngrams(",
    "for head in [] if own or len(words) >= self.n else ngrams(",
)
@pytest.mark.parametrize("measured", [TEMPLATED, PASSAGED])
@pytest.mark.parametrize("before, after", [("", " Show your work."), ("Question: ", ""), ("", "")])
def test_wording_hides_no_problem(tmp_path, capsys, measured, before, after):
    """Catches an evaluation set of a few templates, or of questions on one passage, that stands in the
    training file whole while the report says that none of it does."""
    train = [before + problem + after for problem in measured]
    kept, report = run(tmp_path, asked("What is 1+1?", *train), asked(*measured))
    count = len(measured)
    assert len(kept) == 1 and f"measured.jsonl: {count} of {count} problems" in report
    out = capsys.readouterr().out
    sets = Sets(13)
    sets.add("set", measured)
    assert sets.wording["set"] and any(not problem.ngrams for problem in sets.problems)
    bare = sum(not problem.ngrams for problem in sets.problems)
    assert f"problems that have only wording, found where they stand whole: {bare}\n" in out
    for words, times in sets.wording["set"].items():
        assert f"measured.jsonl, left aside in {times} problems: {words}\n" in report
    assert before + after == "" or "all its words in a row, in 1 row" in report


@mutant("wording of any length", "tools/decontaminate.py", "LONGEST + 1)])", "1000 * LONGEST)])")
def test_a_long_shared_text_is_no_wording():
    """Catches a passage that many problems ask about and that is left aside as if it were a request: a
    training problem with another question on it has seen it."""
    words = [f"word{'abcdefghij'[i // 10]}{'abcdefghij'[i % 10]}" for i in range(41)]
    for length, is_wording in ((40, True), (41, False)):
        sets = Sets(13)
        sets.add("set", [f"{' '.join(words[:length])} {name} {name}?" for name in NAMES])
        assert bool(sets.wording["set"]) == is_wording
        shared = sets.shared(f"{' '.join(words[:length])} Why?")
        assert len(shared) == (0 if is_wording else len(NAMES))


@mutant(
    "wordings that overlap are counted apart",
    "tools/decontaminate.py",
    "first = runs.pop().start if runs and start < runs[-1].stop else start",
    "first = start",
)
@mutant("half of n is wording", "tools/decontaminate.py", "size, most = n // 2 + 1,", "size, most = n // 2,")
def test_what_is_wording():
    """Catches wordings that are not told apart, and words too few to leave an n-gram aside."""
    ends = "ab cd ef gh ij kl mn op qr st".split()
    texts = [
        f"{' '.join(ends[:7])} {name} {' '.join(ends[7:] + ends[:6])} x{name} {' '.join(ends[:6])}"
        for name in NAMES
    ]
    found = find_wording([text.split() for text in texts], 13)
    assert found == [[range(0, 7), range(8, 17)]] * 6


# --- the command --------------------------------------------------------------------------------------------


@mutant("one rows", "tools/decontaminate.py", "* (number != 1)", "* (number > 0)")
def test_the_clean_file_and_the_report(tmp_path, capsys):
    """Catches a row that is lost, changed or kept wrongly, fields that are dropped, and counts that do not
    add up."""
    rows = asked("What is 1+1?", EGGS.upper(), PENS + " Say it in words.", "Odd \u202e one", "What is 2+2?")
    rows[0] |= {"level": "Level 3", "tags": ["a", {"b": None}], "é": "ü"}
    train = [rows[0], "{broken", *rows[1:], rows[2]]
    kept, report = run(tmp_path, train, asked(EGGS, PENS, "What is 3+3?"))
    assert kept == [rows[0], rows[3], rows[4]]
    out = capsys.readouterr().out
    for said in (
        "7 rows, 3 removed, 1 of them whole copies, 3 kept; a find is 13 words in a row",
        "left out, 1 row cannot be read: line 2: not valid JSON",
        "measured.jsonl: 2 of 3 problems, 1 as whole copies",
    ):
        assert said in out and said in report
    said = (
        "measured.jsonl: 3 problems, of all splits; 1 of fewer than 13 words: found where they stand whole, "
    )
    said += "below 5 words as copies alone"
    assert said in out and "wording" not in out + report
    assert f"next: python grpo.py --task jsonl:{tmp_path / 'clean.jsonl'}" in out
    assert load_task(f"jsonl:{tmp_path / 'clean.jsonl'}").different[0].prompt.startswith("What is 1+1?")
    pairs = report.split("\n\n")
    assert "problem 0: a whole copy, in 1 row; the worst is line 3" in pairs[2]
    assert "problem 1: 100% of its 13-grams, in 2 rows; the worst is line 4" in pairs[3]
    assert f"  training: {PENS} Say it in words." in pairs[3] and "  shared: ann has 12 pens bob" in pairs[3]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "clean.jsonl", "clean.report.txt", "measured.jsonl", "train.jsonl"
    ]  # fmt: skip


def test_the_worst_pair_of_a_problem_is_shown(tmp_path):
    """Catches a report that shows the first find or the last instead of the one that shares most."""
    words = PENS.split()
    parts = [" ".join(words[:14]), PENS + " Say why.", " ".join(words[2:16])]
    _, report = run(tmp_path, asked(*parts, "What is 1+1?"), asked(PENS))
    assert "in 3 rows; the worst is line 2" in report
    _, report = run(tmp_path, asked(*parts, PENS, "What is 1+1?"), asked(PENS), pairs=0)
    assert "the worst pairs, 0 of 1" in report and "line 4" not in report


def test_a_strangers_text_stays_text(tmp_path):
    """Catches a problem that steers the terminal or breaks the report's lines."""
    evil = "\x1b[2J\u202e " + EGGS.replace(" ", "\r\n")
    kept, report = run(tmp_path, asked(evil, "half \ud800 of one", "What is 1+1?"), asked(EGGS))
    assert [row["prompt"] for row in kept] == ["half \ud800 of one", "What is 1+1?"]
    assert "\x1b" not in report and "\u202e" not in report and "\\x1b[2J" in report
    assert len([line for line in report.splitlines() if "training:" in line]) == 1


KINDS = {
    "train.jsonl.gz": gzip.compress(lines_of(asked("a b", EGGS, "c d")).encode()),
    "train.json": json.dumps(asked("a b", EGGS, "c d")),
    "split.json": json.dumps({"train": asked("a b", EGGS), "test": asked("c d")}),
    "train.csv": f'prompt;answer;note\na b;0;\n"{EGGS}";1;x\nc d;2;y\n',
    "chat.jsonl": lines_of(
        [
            {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "\\boxed{1}"}]}
            for text in ("a b", EGGS, "c d")
        ]
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file(tmp_path, name):
    """Catches a kind of file that the scripts read and this does not, and one that comes out otherwise."""
    kept, _ = run(tmp_path, KINDS[name], asked(EGGS), name)
    assert len(kept) == 2 and "ducks" not in json.dumps(kept)
    before = load_task(f"jsonl:{tmp_path / name}").different
    after = load_task(f"jsonl:{tmp_path / 'clean.jsonl'}").different
    assert [(p.prompt, p.answer) for p in before if "ducks" not in p.prompt] == [
        (p.prompt, p.answer) for p in after
    ]
    if name == "split.json":
        assert [row["split"] for row in kept] == ["train", "test"]


def test_a_parquet_file(tmp_path):
    """Catches columns that are dropped since training does not read them, and one that JSON cannot hold."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [row | {"extra": i} for i, row in enumerate(asked("a b", EGGS, "c d"))]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "made.parquet")
    kept, _ = run(tmp_path, (tmp_path / "made.parquet").read_bytes(), asked(EGGS), "train.parquet")
    assert kept == [rows[0], rows[2]]
    parquet.write_table(pyarrow.Table.from_pylist([row | {"extra": b"x"} for row in rows]), tmp_path / "b")
    text = refused(tmp_path, (tmp_path / "b").read_bytes(), asked(EGGS), name="train.parquet")
    assert "row 1: cannot be written as JSON" in text and "leave such columns out" in text
    assert not [*tmp_path.glob("clean.jsonl*")]


def test_fields_of_other_names(tmp_path, capsys):
    """Catches a prompt that is looked for in the wrong field, in another spelling of one, or with settings
    that the next command lacks."""
    rows = [
        {"Problem": "a b", "answer": "1"},
        {"problem": EGGS, "answer": "2"},
        {"PROBLEM ": "c", "answer": "3"},
    ]
    assert run(tmp_path, rows, asked(EGGS))[0] == [rows[0], rows[2]]
    rows = [{"prompt": EGGS, "text": text, "gold": {"a b": "1"}} for text in ("a b", EGGS, "c d")]
    kept, _ = run(tmp_path, rows, asked(EGGS), settings="?prompt=text&answer=gold.a b")
    assert kept == [rows[0], rows[2]]
    assert "clean.jsonl?prompt=text&answer=gold.a b'" in capsys.readouterr().out


def test_what_is_refused(tmp_path, monkeypatch):
    """Catches a file that is written over, sets that are none, and a refusal without the flag or way out."""
    train, measured = asked("a b", "c d"), asked(EGGS)
    assert refused(tmp_path, train, measured, against=()).startswith("error: --against: name the evaluation")
    for spec, said in (
        ("chain", "--against chain: unknown; use jsonl:PATH, gsm8k, math500"),
        ("gsm8k?horizon=2", "--against gsm8k?horizon=2: unknown"),
        (f"jsonl:{tmp_path}/none.jsonl", f"--against jsonl:{tmp_path}/none.jsonl: cannot read the file"),
        (
            "math500:dev",
            "--against math500: needs a package that is not installed; run: pip install datasets",
        ),
    ):
        monkeypatch.setitem(sys.modules, "datasets", None)
        assert refused(tmp_path, train, measured, against=(spec,)).startswith(f"error: {said}")
    assert "--n 0: must be at least 1" in refused(tmp_path, train, measured, n=0)
    assert "leave level= out" in refused(tmp_path, train, measured, settings="?level=3")
    assert "nothing is written; see" in refused(tmp_path, asked(EGGS), measured)
    assert (tmp_path / "clean.report.txt").exists() and not (tmp_path / "clean.jsonl").exists()
    assert "holds no problem" in refused(tmp_path, "", measured)
    assert "there are 'prompt', 'gold'" in refused(tmp_path, [{"prompt": "a", "gold": "1"}], measured)
    for task, out, said in (
        ("gsm8k", "new.jsonl", "--task gsm8k: must be a file of yours, jsonl:PATH"),
        (f"jsonl:{tmp_path}/train.jsonl", "train.jsonl", "train.jsonl: exists and is never overwritten"),
        (f"jsonl:{tmp_path}/train.jsonl", "new.csv", "new.csv: JSON lines are written"),
    ):
        with pytest.raises(SystemExit, match=said.replace("?", ".")):
            main(Args(task=task, out=tmp_path / out, against=(f"jsonl:{tmp_path}/measured.jsonl",)))
    (tmp_path / "train.jsonl").write_text(lines_of(train))
    with pytest.raises(SystemExit, match="must be three files"):
        same = tmp_path / "same.jsonl"
        main(Args(task=f"jsonl:{tmp_path}/train.jsonl", out=same, report=same, against=("math500",)))
    (tmp_path / "file").write_text("")
    (tmp_path / "measured.jsonl").write_text(lines_of(measured))
    with pytest.raises(SystemExit, match="--out .*: cannot be written"):
        place = tmp_path / "file/clean.jsonl"
        main(Args(f"jsonl:{tmp_path}/train.jsonl", place, (f"jsonl:{tmp_path}/measured.jsonl",)))
    said = refused(tmp_path, train, measured, report=tmp_path / "file/report.txt")
    assert "--report" in said and "report.txt: cannot be written" in said and said.endswith("another name")
    assert not [*tmp_path.glob("clean.jsonl*")]  # so that the same command with another --report works


def test_sets_of_the_hub(tmp_path, monkeypatch):
    """Catches a split that is not the one asked for, and a message about --task or --task chain where the
    network is missing."""
    rows = {
        "train": [{"question": f"Q{i}", "answer": "#### 1"} for i in range(7472)]
        + [{"question": PENS, "answer": "#### 2"}],
        "test": [{"question": f"T{i}", "answer": "#### 1"} for i in range(1318)]
        + [{"question": EGGS, "answer": "#### 3"}],
    }

    class Rows(list):
        column_names = ("question", "answer")

    hub = SimpleNamespace(load_dataset=lambda path, config, split: Rows(rows[split]))
    monkeypatch.setitem(sys.modules, "datasets", hub)
    train = asked("a b", EGGS, PENS)
    for spec, gone in (("gsm8k", EGGS), ("gsm8k:test", EGGS), ("gsm8k:dev", PENS)):
        kept, report = run(tmp_path, train, asked("x"), against=(spec,))
        assert [row["prompt"] for row in kept] == [text for text in ("a b", EGGS, PENS) if text != gone]
        assert f"  {spec}: 1 of " in report

    def offline(path, config, split):
        raise ConnectionError("no network")

    hub.load_dataset = offline
    text = refused(tmp_path, train, asked("x"), against=("math500",))
    assert text.startswith("error: --against math500: cannot be loaded; it needs a network or a local cache")
    assert "Offline, give a copy as jsonl:FILE" in text and "--task" not in text


def test_a_prompt_that_comes_again_is_judged_once(tmp_path, monkeypatch):
    """Catches hours over DAPO-17k, which has each of its problems a hundred times, and copies that are not
    counted."""
    judged = []
    shared = Sets.shared
    monkeypatch.setattr(Sets, "shared", lambda self, text: judged.append(text) or shared(self, text))
    kept, report = run(tmp_path, asked(EGGS, "a b") * 50, asked(EGGS))
    assert len(judged) == 2 and len(kept) == 50 and "100 rows, 50 removed, 50 of them whole copies" in report
    assert files.NAMED > 0

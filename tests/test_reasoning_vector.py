"""papers/reasoning_vector.py: the arithmetic and its report, whole folders against transformers, what does
not go together, and that nothing is overwritten or half-written."""

import json
import math
import shutil
import weakref
from pathlib import Path

import pytest
import torch
from mutants import mutant
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaForCausalLM

from papers import reasoning_vector
from papers.reasoning_vector import Args, added, difference, measures, sums_of
from plainrl import models
from plainrl.weight_files import Weights

# --- the arithmetic -----------------------------------------------------------------------------------------

# The reference's four weights: minus and to, and plus.
B = C = torch.tensor([1.0, -0.5, 0.01, 2.0])
A = torch.tensor([1.004, -0.501, 0.0112, 2.003])


@mutant(
    "vector: the wrong way round",
    "papers/reasoning_vector.py",
    "return plus.float() - minus.float()",
    "return minus.float() - plus.float()",
)
@mutant(
    "vector: alpha without effect",
    "papers/reasoning_vector.py",
    "theta.float() + alpha * v",
    "theta.float() + v",
)
@mutant(
    "vector: taken away",
    "papers/reasoning_vector.py",
    "theta.float() + alpha * v",
    "theta.float() - alpha * v",
)
def test_vector_and_sum_by_hand():
    """Catches a sign and an alpha: v = (.004, -.001, .0012, .003), C + v = A, C - v/2 on the other side."""
    v = difference(A, B)
    assert v.tolist() == pytest.approx([0.004, -0.001, 0.0012, 0.003], abs=1e-6)
    assert added(C, v, 1.0).tolist() == pytest.approx(A.tolist(), abs=1e-6)
    assert added(C, v, -0.5).tolist() == pytest.approx([0.998, -0.4995, 0.0094, 1.9985], abs=1e-6)
    assert torch.equal(added(C, v, 0.0), C)


def test_sums_of_powers_of_two_are_exact():
    """Catches a sum in fewer bits: B + v = A and A + v - v = A to the last bit where nothing is rounded."""
    base = torch.tensor([1.0, -0.5, 0.25, 8.0])
    other = base + torch.tensor([2.0**-20, 2.0**-10, -(2.0**-3), 2.0**-15])
    v = difference(other, base)
    assert torch.equal(added(base, v, 1.0), other)
    assert torch.equal(added(added(other, v, 1.0), v, -1.0), other)


@mutant(
    "vector: a difference in bfloat16",
    "papers/reasoning_vector.py",
    "return plus.float() - minus.float()",
    "return (plus - minus).float()",
)
@mutant(
    "vector: a sum in bfloat16",
    "papers/reasoning_vector.py",
    "theta.float() + alpha * v",
    "theta + (alpha * v).to(theta.dtype)",
)
def test_donors_in_bfloat16_by_hand():
    """Catches arithmetic in the dtype of the files. Rounded donors: (1.0078125, -.5, .01123, 2) less (1, -.5,
    .01001, 2), and a weight of 1 that a quarter of its spacing is added to."""
    v = difference(A.bfloat16(), B.bfloat16())
    assert v.dtype == torch.float32 and v.tolist() == pytest.approx([0.0078125, 0, 0.0012, 0], abs=5e-5)
    assert (v == 0).tolist() == [False, True, False, True]
    small = torch.tensor([0.001953125])
    assert difference(torch.tensor([256.0]).bfloat16(), small.bfloat16()).item() == 256.0 - 0.001953125
    assert added(torch.ones(1).bfloat16(), small, 1.0).item() == 1.001953125


@mutant(
    "vector: squares of the norm",
    "papers/reasoning_vector.py",
    '"|v|": math.sqrt(sums["vv"])',
    '"|v|": sums["vv"]',
)
@mutant(
    "vector: share of the other",
    "papers/reasoning_vector.py",
    'math.sqrt(sums["vv"] / sums["tt"])',
    'math.sqrt(sums["tt"] / sums["vv"])',
)
@mutant(
    "vector: sign of the angle",
    "papers/reasoning_vector.py",
    "learned = theta - minus.float()",
    "learned = minus.float() - theta",
)
@mutant("vector: angle to the model", "papers/reasoning_vector.py", "dot(v, learned)", "dot(v, theta)")
@mutant(
    "vector: weights that moved",
    "papers/reasoning_vector.py",
    "(saved == theta.to(saved.dtype))",
    "(saved != theta.to(saved.dtype))",
)
@mutant("vector: other than zeros", "papers/reasoning_vector.py", '"zeros": (v == 0)', '"zeros": (v != 0)')
def test_report_by_hand():
    """Catches a norm without its root, an angle to something else, and shares of the rest: |v| .005238 and
    |v| / |C| .002286 of the reference; v = (.25, 0, .5, -1), to - minus = (.5, 0, -.01, 0)."""
    found = measures(sums_of(difference(A, B), C, B, saved=C))
    assert found["|v|"] == pytest.approx(0.005238, abs=1e-6)
    assert found["|v|/|theta|"] == pytest.approx(0.002286, abs=1e-6)
    assert "cos" not in found  # --to is --minus
    to = torch.tensor([1.5, -0.5, 0.0, 2.0])
    v = torch.tensor([0.25, 0.0, 0.5, -1.0])
    found = measures(sums_of(v, to, B, saved=torch.tensor([1.75, -0.5, 0.5, 1.0])))
    assert found["cos"] == pytest.approx(0.12 / math.sqrt(1.3125 * 0.2501), rel=1e-6)  # .2094
    assert found["zeros"] == 0.25 and found["not moved"] == 0.25
    theta, v = torch.tensor([1.001, 1.0]), torch.tensor([0.0, 1.0])
    halves = sums_of(v, theta, saved=torch.tensor([1.001, 2.0]).half())
    assert halves["stayed"] == 1  # 1.001 was rounded, but not moved by v


@mutant("vector: sums in float32", "papers/reasoning_vector.py", "(x.double() @ y.double())", "(x @ y)")
def test_sums_over_many_weights_are_in_float64(monkeypatch):
    """Catches a sum that loses what is small beside it, and a chunk that is left out: 2^26 + 1000 halves."""
    monkeypatch.setattr(reasoning_vector, "CHUNK", 300)
    many = torch.full((1001,), 0.5)
    many[0] = 2.0**26
    assert reasoning_vector.dot(many.view(7, 143), torch.ones(7, 143)) == 2**26 + 500


# --- whole folders ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def family(toy_model, tmp_path_factory):
    """Makes a folder of the family: `family(name, seed, ...)`, the toy model with other weights."""
    root, made = tmp_path_factory.mktemp("family"), {}

    def member(seed: int, dtype=torch.float32, tied=True, shard="1GB", scale=0.05, model=None) -> str:
        key = (seed, dtype, tied, shard, scale)
        if model is None and key in made:
            return made[key]
        folder = root / f"model-{len(list(root.iterdir()))}"
        net = model or LlamaForCausalLM.from_pretrained(toy_model)
        if not tied:
            net.config.tie_word_embeddings = False
            net.lm_head.weight = torch.nn.Parameter(net.lm_head.weight.detach().clone())
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in net.parameters():
                weight.add_(scale * torch.randn(weight.shape, generator=generator))
        net.to(dtype).save_pretrained(folder, max_shard_size=shard)
        AutoTokenizer.from_pretrained(toy_model).save_pretrained(folder)
        if model is None:
            made[key] = str(folder)
        return str(folder)

    return member


def weights_in(folder) -> dict[str, torch.Tensor]:
    """As transformers loads them, in float32."""
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()


def make(tmp_path, **flags) -> Path:
    return reasoning_vector.main(Args(**{"out": tmp_path / "sum"} | flags))


def assert_sum(folder, plus, minus, to, alpha=1.0, dtype=torch.float32, skip=()):
    """Every weight is that of the other library's arithmetic, to the last bit."""
    ours, (A, B, C) = weights_in(folder), map(weights_in, (plus, minus, to))
    assert ours.keys() == C.keys()
    for name in C:
        v = 0.0 if any(part in name for part in skip) else A[name] - B[name]
        expected = (C[name] + alpha * v).to(dtype).float()
        assert torch.equal(ours[name], expected), name


@mutant(
    "vector: --to instead of --minus",
    "papers/reasoning_vector.py",
    "minus = donors[1].read(name)",
    "minus = to.read(name)",
)
@mutant(
    "vector: shards under one name",
    "plainrl/weight_files.py",
    "names.setdefault(model.files[name], [])",
    "names.setdefault(min(model.files.values()), [])",
    case="40KB-True-1.0",
)
@pytest.mark.parametrize("alpha", [1.0, -0.5])
@pytest.mark.parametrize("shard, tied", [("1GB", True), ("40KB", True), ("40KB", False)])
def test_a_sum_is_that_of_transformers(family, tmp_path, alpha, shard, tied, capsys):
    """Catches a tensor that is left out, another model's, or in another place of the file; in one file and in
    several, with a tied head and with its own."""
    plus, minus = family(1, tied=tied), family(2, tied=tied, shard="30KB")
    to = family(3, tied=tied, shard=shard)
    out = make(tmp_path, plus=plus, minus=minus, to=to, alpha=alpha)
    assert_sum(out, plus, minus, to, alpha)
    assert sorted(path.name for path in out.glob("*.safetensors")) == sorted(
        path.name for path in Path(to).glob("*.safetensors")
    )
    screen = capsys.readouterr().out
    assert f"all {20 + (not tied)} " in screen and "model.embed_tokens.weight" in screen
    assert "eval.py --model" in screen and "warning" not in screen


def test_all_else_is_that_of_the_target(family, tmp_path):
    """Catches a folder without tokenizer, template or config, one with the state of a training run, and one
    that no other command can read."""
    to = Path(family(3, shard="40KB"))
    shutil.copytree(to, tmp_path / "to")
    (tmp_path / "to" / "chosen.json").write_text("{}")
    (tmp_path / "to" / "optimizer.pt").write_text("")
    (tmp_path / "to" / "LICENSE").write_text("free")
    (tmp_path / "to" / "additional_chat_templates").mkdir()
    (tmp_path / "to" / "additional_chat_templates" / "tools.jinja").write_text("x")
    out = make(tmp_path, plus=family(1), minus=family(2), to=str(tmp_path / "to"))
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    new = {"checksums.json", "reasoning_vector.json", "LICENSE", "additional_chat_templates/tools.jinja"}
    assert names == {path.name for path in to.iterdir()} | new
    for name in names - new - {"model.safetensors.index.json"}:
        if not name.endswith(".safetensors"):
            assert (out / name).read_bytes() == (to / name).read_bytes(), name
    index, old = (json.loads((path / "model.safetensors.index.json").read_text()) for path in (out, to))
    assert index["weight_map"] == old["weight_map"]
    assert index["metadata"]["total_size"] == old["metadata"]["total_size"]
    assert models.damage(out) is None
    assert list(tmp_path.glob("*.tmp")) == []
    model, tokenizer = models.load_model(str(out))
    assert tokenizer.chat_template and model.config.vocab_size == 288
    found = json.loads((out / "reasoning_vector.json").read_text())
    assert found["alpha"] == 1.0 and found["plus"] == family(1) and found["tensors"]["all 20"]["zeros"] == 0


@mutant(
    "vector: always in float32",
    "papers/reasoning_vector.py",
    "codes = dict(to.codes)",
    'codes = dict.fromkeys(to.codes, "F32")',
)
@mutant(
    "vector: --dtype in the config alone",
    "papers/reasoning_vector.py",
    "codes |= {name: CODES[args.dtype] for",
    "codes |= {name: code for",
)
@pytest.mark.parametrize(
    "of_to, asked", [("bfloat16", None), ("bfloat16", "float32"), ("float32", "float16")]
)
def test_the_sum_is_saved_in_the_dtype_of_the_target_or_as_asked(family, tmp_path, of_to, asked):
    """Catches a folder twice the size, one whose small changes are rounded away against the user's will, and
    a config that says something else than the files."""
    dtype, saved = getattr(torch, of_to), getattr(torch, asked or of_to)
    plus, minus, to = family(1), family(2), family(3, dtype=dtype)
    out = make(tmp_path, plus=plus, minus=minus, to=to, dtype=asked)
    assert {weight.dtype for weight in load_file(out / "model.safetensors").values()} == {saved}
    assert json.loads((out / "config.json").read_text())["dtype"] == (asked or of_to)
    assert_sum(out, plus, minus, to, dtype=saved)


@mutant(
    "vector: nothing is skipped",
    "papers/reasoning_vector.py",
    "                if name in names:",
    "                if True:",
)
def test_skipped_tensors_stay_as_they_are(family, tmp_path):
    """Catches a mask that is turned round, and one for all."""
    plus, minus, to = family(1), family(2), family(3)
    out = make(tmp_path, plus=plus, minus=minus, to=to, skip=("layers.0.", "embed"))
    assert_sum(out, plus, minus, to, skip=("layers.0.", "embed", "lm_head"))


@pytest.mark.parametrize("tied", [True, False])
def test_vocabularies_that_are_padded_to_another_size(family, tmp_path, tied, toy_model, capsys):
    """Catches a family that cannot be added for its padding, and one that is added row by wrong row."""
    larger = LlamaForCausalLM.from_pretrained(toy_model)
    if not tied:
        larger.config.tie_word_embeddings = False
        larger.lm_head.weight = torch.nn.Parameter(larger.lm_head.weight.detach().clone())
    larger.resize_token_embeddings(304)
    to = family(4, model=larger)
    plus, minus = family(1, tied=tied), family(2, tied=tied)
    flags = dict(plus=plus, minus=minus, to=to)
    count = 1 + (not tied)
    with pytest.raises(
        SystemExit, match=rf"^error: --to: differs from --plus in {count} of {19 + count} tensors, first in"
    ):
        make(tmp_path, **flags)
    assert "[304, 32]" in capsys.readouterr().out and not (tmp_path / "sum").exists()
    out = make(tmp_path, **flags, skip=("embed", "lm_head") if not tied else ("embed",))
    assert_sum(out, plus, minus, to, skip=("embed", "lm_head"))


@mutant(
    "vector: kept without what was skipped",
    "papers/reasoning_vector.py",
    'skip = [*args.skip, *json.loads(about["skip"])]',
    "skip = [*args.skip]",
)
@pytest.mark.parametrize("skip", [(), ("layers.1.",)])
def test_a_vector_that_is_kept_is_added_later(family, tmp_path, skip, capsys):
    """Catches a file that only this script reads, and a sum by way of it that is another one."""
    plus, minus, to = family(1), family(2), family(3)
    file = make(tmp_path, plus=plus, minus=minus, out=tmp_path / "v.safetensors", skip=skip)
    A, B, v = load_file(f"{plus}/model.safetensors"), load_file(f"{minus}/model.safetensors"), load_file(file)
    assert v.keys() == {name for name in A if not any(part in name for part in skip)}
    assert all(torch.equal(v[name], A[name] - B[name]) for name in v)
    assert "--vector" in capsys.readouterr().out
    at_once = make(tmp_path, plus=plus, minus=minus, to=to, alpha=0.5, skip=skip)
    later = make(tmp_path, vector=file, to=to, alpha=0.5, out=tmp_path / "later")
    assert (at_once / "model.safetensors").read_bytes() == (later / "model.safetensors").read_bytes()
    assert json.loads((later / "reasoning_vector.json").read_text())["plus"] == plus


def test_models_may_be_larger_than_the_memory(family, tmp_path, monkeypatch, toy_model):
    """Catches a model that is loaded as a whole: of all tensors that are read, one of each model is alive."""
    deep = LlamaForCausalLM.from_pretrained(toy_model).config
    deep.num_hidden_layers, deep.vocab_size = 12, 288
    members = [family(seed, model=LlamaForCausalLM(deep)) for seed in (1, 2, 3)]
    whole = sum(weight.nbytes for weight in load_file(f"{members[0]}/model.safetensors").values())
    alive, peak, read = [0], [0], Weights.read

    def forget(size: int) -> None:
        alive[0] -= size

    def counted(self, name):
        tensor = read(self, name)
        alive[0] += tensor.nbytes
        peak[0] = max(peak[0], alive[0])
        weakref.finalize(tensor, forget, tensor.nbytes)
        return tensor

    monkeypatch.setattr(Weights, "read", counted)
    make(tmp_path, plus=members[0], minus=members[1], to=members[2])
    largest = 288 * 32 * 4
    assert largest <= peak[0] <= 4 * largest < whole / 3
    make(tmp_path, plus=members[0], minus=members[1], out=tmp_path / "v.safetensors")
    assert alive[0] == 0 and peak[0] <= 4 * largest


def test_a_counter_among_the_weights_stays(family, tmp_path):
    """Catches a tensor of whole numbers that is added up, or lost."""
    members = []
    for seed in (1, 2, 3):
        folder = tmp_path / f"model {seed}"
        shutil.copytree(family(seed), folder)
        weights = load_file(folder / "model.safetensors")
        save_file(weights | {"count": torch.tensor([seed])}, folder / "model.safetensors", {"format": "pt"})
        members.append(str(folder))
    out = make(tmp_path, plus=members[0], minus=members[1], to=members[2], dtype="bfloat16")
    assert load_file(out / "model.safetensors")["count"].tolist() == [3]


@mutant("vector: a head of its own, unseen")
def test_a_tied_head_that_is_stored_counts_once(family, tmp_path, capsys):
    """Catches a family that cannot be added since one of its files says a weight twice, and a sum in which
    the two are no longer the same."""
    twice = tmp_path / "twice"
    shutil.copytree(family(3), twice)
    weights = load_file(twice / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, twice / "model.safetensors", {"format": "pt"})
    out = make(tmp_path, plus=family(1), minus=family(2), to=str(twice))
    assert_sum(out, family(1), family(2), family(3))
    assert "all 20 " in capsys.readouterr().out


# --- what the report warns of -------------------------------------------------------------------------------


@mutant(
    "vector: zeros without a word", "papers/reasoning_vector.py", 'if found["zeros"] > MUCH:', "if False:"
)
def test_donors_in_bfloat16_after_small_steps_are_said(family, tmp_path, capsys):
    """Catches a vector of zeros and rounding that looks like a result."""
    near = LlamaForCausalLM.from_pretrained(family(1, dtype=torch.bfloat16), dtype=torch.float32)
    plus = family(5, dtype=torch.bfloat16, scale=1e-5, model=near)
    out = make(tmp_path, plus=plus, minus=family(1, dtype=torch.bfloat16), to=family(3))
    screen = capsys.readouterr().out
    zeros = json.loads((out / "reasoning_vector.json").read_text())["tensors"]["all 20"]["zeros"]
    A, B = (load_file(f"{name}/model.safetensors") for name in (plus, family(1, dtype=torch.bfloat16)))
    equal = sum((A[name] == B[name]).sum().item() for name in A)
    assert zeros == equal / sum(weight.numel() for weight in A.values()) > 0.9
    assert f"warning: {zeros:.0%} of v is exactly 0, and the donors were saved in BF16" in screen


@mutant(
    "vector: lost in saving, without a word",
    "papers/reasoning_vector.py",
    'if found.get("not moved", 0) - found["zeros"] > MUCH:',
    "if False:",
)
def test_a_sum_that_is_rounded_away_is_said(family, tmp_path, capsys):
    """Catches a target whose bfloat16 swallows the vector."""
    near = LlamaForCausalLM.from_pretrained(family(1))
    flags = dict(plus=family(5, scale=1e-5, model=near), minus=family(1), to=family(3, dtype=torch.bfloat16))
    make(tmp_path, **flags)
    screen = capsys.readouterr().out
    assert (
        "of the weights did not move, and only 0% of v is 0: the rest is below the spacing of BF16" in screen
    )
    make(tmp_path, **flags, dtype="float32", out=tmp_path / "whole")
    assert "did not move" not in capsys.readouterr().out


# --- what is refused ----------------------------------------------------------------------------------------


def copy_of(folder: str, name: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / name))


def broken(kind: str, good: str, tmp_path: Path) -> str:
    """A model that cannot be used."""
    folder = copy_of(good, "broken", tmp_path)
    weights = load_file(folder / "model.safetensors")
    if kind == "nan":
        weights["model.layers.1.mlp.up_proj.weight"][3, 4] = torch.nan
    if kind == "shape":
        weights["model.layers.0.mlp.up_proj.weight"] = torch.zeros(65, 32)
    if kind == "missing":
        del weights["model.layers.0.mlp.up_proj.weight"]
    if kind in ("nan", "shape", "missing"):
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    if kind in ("token", "more"):
        text = (folder / "tokenizer.json").read_text()
        tokenizer = json.loads(text)
        last = max(tokenizer["model"]["vocab"].values())
        if kind == "token":
            vocab = {
                (f"\x1b{key}" if id == last else key): id for key, id in tokenizer["model"]["vocab"].items()
            }
            tokenizer["model"]["vocab"] = vocab
            tokenizer["model"]["merges"] = []
        else:
            added = tokenizer["added_tokens"][0] | {"id": last + 1, "content": "<|new|>"}
            tokenizer["added_tokens"].append(added)
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    if kind == "wordless":
        for path in folder.glob("tokenizer*"):
            path.unlink()
    return str(folder)


@mutant(
    "vector: nan in, nan out",
    "plainrl/weight_files.py",
    "if self.codes[name] in DTYPES and not torch.isfinite(tensor).all():",
    "if False:",
    case="nan-model.layers.1.mlp.up_proj.weight has nan or inf",
)
@pytest.mark.parametrize(
    "kind, said",
    [
        ("nan", "model.layers.1.mlp.up_proj.weight has nan or inf"),
        (
            "shape",
            r"in 1 of 20 tensors, first in model.layers.0.mlp.up_proj.weight: \[65, 32\], there \[64, 32\]",
        ),
        ("missing", r"in 1 of 20 tensors, first in .*up_proj.weight: missing, there \[64, 32\]"),
        ("token", r"in 1 of 288 token ids, first in \d+: '\\x1b.*', there '"),
        ("more", r"in 1 of 289 token ids, first in 288: '<\|new\|>', there no token"),
        ("wordless", "cannot be loaded"),
    ],
)
def test_a_model_that_cannot_be_used_is_one_line_and_leaves_nothing(family, tmp_path, kind, said, toy_model):
    """Catches a traceback, a message that names no flag or tensor, and files of a try that failed."""
    bad = broken(kind, family(2), tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for flag in ("minus", "to"):
        others = dict(plus=family(1), minus=family(2), to=family(3)) | {flag: bad}
        with pytest.raises(SystemExit, match=f"^error: --{flag}.*{said}") as stop:
            make(tmp_path, **others)
        assert "\n" not in str(stop.value) and "\x1b" not in str(stop.value)
    assert sorted(tmp_path.rglob("*")) == before


@mutant(
    "vector: rows that are skipped must be there",
    "plainrl/models.py",
    "ids = mine.keys() & other.keys() if may_miss else",
    "ids =",
)
@mutant(
    "vector: any language where rows are skipped",
    "plainrl/models.py",
    "ids = mine.keys() & other.keys() if may_miss else",
    "ids = set() if may_miss else",
)
def test_new_tokens_do_not_matter_where_their_rows_are_skipped(family, tmp_path):
    """Catches --skip that helps nobody, and one that lets another language pass."""
    more = broken("more", family(3), tmp_path)
    make(tmp_path, plus=family(1), minus=family(2), to=more, skip=("embed",))
    (tmp_path / "other").mkdir()
    other = broken("token", family(3), tmp_path / "other")
    with pytest.raises(SystemExit, match="differs from --plus in 1 of 288 token ids"):
        make(tmp_path, plus=family(1), minus=family(2), to=other, skip=("embed",), out=tmp_path / "no")


@mutant(
    "vector: kept for any language",
    "papers/reasoning_vector.py",
    'if about.setdefault("tokens", tokens) != tokens:',
    'if about.setdefault("tokens", tokens) is None:',
)
def test_a_vector_of_other_tokens_or_of_another_file_is_refused(family, tmp_path):
    """Catches a vector that is added to a model of another language, and any file that is taken for one."""
    file = make(tmp_path, plus=family(1), minus=family(2), out=tmp_path / "v.safetensors")
    with pytest.raises(SystemExit, match="^error: --vector: was made of models with other token ids"):
        make(tmp_path, vector=file, to=broken("token", family(3), tmp_path))
    with pytest.raises(SystemExit, match="is no vector that this script kept"):
        make(tmp_path, vector=Path(family(1), "model.safetensors"), to=family(3))
    with pytest.raises(SystemExit, match="--vector .*config.json: cannot be read"):
        make(tmp_path, vector=Path(family(1), "config.json"), to=family(3))
    assert not (tmp_path / "sum").exists()


@pytest.mark.parametrize(
    "flags, said",
    [
        (dict(plus="a"), "--plus, --minus: give both, such as"),
        (dict(plus="a", minus="b", out=None), "--out: give a folder for the sum"),
        (dict(plus="a", minus="b"), "--to: give the model"),
        (
            dict(plus="a", minus="b", to="c", out=Path("x.safetensors")),
            "--out x.safetensors: the sum is a folder",
        ),
        (dict(vector=Path("v"), plus="a", to="c"), "--vector: takes the place of --plus and --minus"),
        (dict(vector=Path("v")), "--vector: takes the place of --plus and --minus, and needs --to"),
        (
            dict(plus="a", minus="b", alpha=2.0, out=Path("x.safetensors")),
            "--alpha, --dtype: are about the sum",
        ),
        (dict(plus="a", minus="b", to="c", alpha=float("nan")), "--alpha nan: must be a number"),
        (dict(plus="./a", minus="b", to="c"), "--plus ./a: no such folder"),
        (dict(plus="runs/a", minus="b", to="c"), "--plus runs/a: no such folder"),
        (dict(plus="models/tiny", minus="models/tiny", to="./c"), "--to ./c: no such folder or file"),
    ],
)
def test_flags_that_do_not_go_together_are_one_line(tmp_path, flags, said, monkeypatch):
    """Catches a try that ends in a traceback, or in another place than the user meant."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=f"^error: {said}"):
        make(tmp_path, **flags)
    assert list(tmp_path.iterdir()) == []


def test_what_is_skipped_must_be_there_and_not_be_all(family, tmp_path):
    """Catches a slip of the pen that skips nothing, without a word."""
    flags = dict(plus=family(1), minus=family(2), to=family(3))
    with pytest.raises(
        SystemExit, match="--skip embedd: is in no tensor's name; one of them is model.embed_"
    ):
        make(tmp_path, **flags, skip=("embed", "embedd"))
    with pytest.raises(SystemExit, match="--skip: leaves no tensor"):
        make(tmp_path, **flags, skip=("model",))


@mutant(
    "vector: a sum with nothing", "papers/reasoning_vector.py", 'if in_all(report)["vv"] == 0:', "if False:"
)
@mutant(
    "vector: a sum of infinities",
    "papers/reasoning_vector.py",
    "if not torch.isfinite(saved).all():",
    "if False:",
)
def test_equal_donors_and_numbers_too_large_are_refused(family, tmp_path):
    """Catches a copy of the target under a new name, and a model of infinities."""
    with pytest.raises(SystemExit, match="^error: --plus, --minus: have the same weights"):
        make(tmp_path, plus=family(1), minus=family(1), to=family(3))
    with pytest.raises(
        SystemExit, match="^error: --to: .* is too large for torch.float16; give --dtype float32"
    ):
        make(tmp_path, plus=family(1), minus=family(2), to=family(3), alpha=1e7, dtype="float16")
    assert list(tmp_path.iterdir()) == []


@mutant(
    "vector: half a model stays",
    "plainrl/folder.py",
    "        shutil.rmtree(aside, ignore_errors=True)\n",
    "",
)
@mutant(
    "vector: what is there is overwritten",
    "papers/reasoning_vector.py",
    'refuse_existing("--out", args.out)',
    "pass",
)
@pytest.mark.parametrize(
    "error, said",
    [
        (KeyboardInterrupt, "^\nstopped; nothing is written"),
        (OSError(28, "No space left on device"), "^error: --out .*other/sum: cannot be written .*No space"),
    ],
)
def test_nothing_is_overwritten_or_half_written(family, tmp_path, monkeypatch, error, said):
    """Catches a model without half of its tensors that looks whole, and the loss of one that was there."""
    flags = dict(plus=family(1), minus=family(2), to=family(3))
    out = make(tmp_path, **flags)
    before = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(SystemExit, match="^error: --out .*: exists and is never overwritten"):
        make(tmp_path, **flags, alpha=0.5)
    calls = []

    def fails_at_the_fifth(theta, v, alpha):
        calls.append(1)
        if len(calls) == 5:
            raise error
        return added(theta, v, alpha)

    monkeypatch.setattr(reasoning_vector, "added", fails_at_the_fifth)
    with pytest.raises(SystemExit, match=said):
        make(tmp_path, **flags, out=tmp_path / "other" / "sum")
    assert list((tmp_path / "other").iterdir()) == []
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_models_are_looked_for_and_those_of_this_project_found(family, tmp_path, monkeypatch):
    """Catches a minute of waiting for a hub that cannot be reached, and an embedded model that is only found
    in this folder."""
    asked = []
    monkeypatch.setattr("plainrl.flags.check_model_is_there", lambda name, flag: asked.append((name, flag)))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"tensors, first in model.embed_tokens.weight: \[375, 128\]"):
        make(tmp_path, plus=family(1), minus=family(2), to="models/tiny")
    assert {(family(1), "--plus"), (family(2), "--minus"), ("models/tiny", "--to")} <= set(asked)

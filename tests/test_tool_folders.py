"""plainrl/folder.py: the files and folders that tools write, and work that goes on where it stopped."""

import datetime
import json

import pytest
from filelock import FileLock, Timeout
from mutants import mutant

from plainrl import folder, samples
from tools import compose, hints


def test_a_file_is_never_written_over_and_what_cannot_be_written_is_one_line(tmp_path):
    """Catches a file of somebody else's that is lost, a traceback, and a message without a way out."""
    there = tmp_path / "there"
    there.write_text("mine")
    with pytest.raises(SystemExit, match="^error: --out .*there: exists and is never overwritten; give"):
        folder.refuse_existing("--out", there)
    folder.refuse_existing("--out", tmp_path / "not there")
    with pytest.raises(SystemExit, match="^error: --out .*there/a: cannot be written .*; give another$"):
        folder.write_or_fail("--out", there / "a", "text", "give another")
    assert there.read_text() == "mine" and [*tmp_path.iterdir()] == [there]
    line = folder.json_lines([{"a": "ß☃", "day": datetime.date(2025, 1, 2)}])
    assert line == '{"a": "ß☃", "day": "2025-01-02"}\n'


@mutant(
    "folder: half a file stays",
    "plainrl/folder.py",
    "            aside.unlink(missing_ok=True)\n",
    "            pass\n",
)
@mutant(
    "folder: a file of meanwhile is overwritten",
    "plainrl/folder.py",
    "        if path.exists():\n            raise FileExistsError",
    "        if False:\n            raise FileExistsError",
)
def test_what_is_written_aside_gets_its_name_at_the_end(tmp_path):
    """Catches half a file or folder under its name, what a try that failed leaves behind, and a file that
    another process wrote in the meantime and that is lost."""
    with folder.written_aside(tmp_path / "new" / "file") as aside:
        aside.write_text("whole")
        assert not (tmp_path / "new" / "file").exists()
    assert (tmp_path / "new" / "file").read_text() == "whole"
    for make in (lambda aside: aside.write_text("half"), lambda aside: aside.mkdir()):
        with pytest.raises(KeyboardInterrupt):
            with folder.written_aside(tmp_path / "other") as aside:
                make(aside)
                raise KeyboardInterrupt
        assert [path.name for path in tmp_path.iterdir()] == ["new"]
    with pytest.raises(FileExistsError, match="has come into being meanwhile"):
        with folder.written_aside(tmp_path / "late") as aside:
            aside.write_text("ours")
            (tmp_path / "late").write_text("theirs")
    assert (tmp_path / "late").read_text() == "theirs" and len([*tmp_path.iterdir()]) == 2


@mutant(
    "folder: two tools at once",
    "plainrl/folder.py",
    "    held = lock(folder, flag=flag)\n",
    "    held = FileLock(folder)\n",
)
@mutant("folder: any folder is the tool's", "plainrl/folder.py", "and own not in names:", "and False:")
def test_a_folder_of_work_is_its_own_and_of_one_process(tmp_path):
    """Catches two processes that write into one folder, a folder with somebody's files that is filled, and a
    message that names another flag than the user gave."""
    with folder.claimed("--scores-dir", tmp_path / "new", "own.jsonl"):
        other = FileLock(tmp_path / "new" / ".lock", timeout=0)
        with pytest.raises(Timeout):
            other.acquire()
    with other:
        said = "^error: --scores-dir .*new: another process is writing there; .* choose another --scores-dir$"
        with pytest.raises(SystemExit, match=said):
            with folder.claimed("--scores-dir", tmp_path / "new", "own.jsonl"):
                pass
    (tmp_path / "new" / "thesis.tex").write_text("mine")
    with pytest.raises(
        SystemExit, match="^error: --scores-dir .*new: has files, and no own.jsonl of this tool"
    ):
        with folder.claimed("--scores-dir", tmp_path / "new", "own.jsonl"):
            pass
    (tmp_path / "new" / "own.jsonl").write_text("")
    with folder.claimed("--scores-dir", tmp_path / "new", "own.jsonl"):
        pass
    for path, said in (
        ("thesis.tex", "is a file; choose a folder"),
        ("thesis.tex/a", "cannot be used .Not a dir"),
    ):
        with pytest.raises(SystemExit, match=f"^error: --scores-dir .*{path}: {said}"):
            with folder.claimed("--scores-dir", tmp_path / "new" / path, "own.jsonl"):
                pass


@mutant(
    "folder: settings that are gone",
    "plainrl/folder.py",
    "if value != before.get(name):",
    "if value != before.get(name, value):",
)
def test_work_goes_on_with_the_settings_that_it_was_begun_with(tmp_path):
    """Catches work that goes on with other settings, and a value that steers the terminal."""
    folder.refuse_other_settings("--x", {"a": 1, "old": 2}, {"a": 1}, "way out")
    for before, said in (({"a": 2}, "a was 2"), ({}, "a was None"), ({"a": "\x1b[2J"}, r"a was \\x1b\[2J")):
        with pytest.raises(SystemExit, match=f"^error: --x: {said} and is now 1; way out$"):
            folder.refuse_other_settings("--x", before, {"a": 1}, "way out")


@pytest.mark.parametrize(
    "tool, flags", [(hints, {"problems": 3}), (compose, {"problems": 3, "held_out": 1, "horizons": (1,)})]
)
def test_a_tool_that_cannot_write_says_so_in_one_line(tmp_path, tool, flags):
    """Catches a traceback at the end of the work."""
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="^error: --out .*file/a: cannot be written .*; give another name$"):
        tool.main(tool.Args(task="chain", out=tmp_path / "file" / "a", **flags))


@mutant(
    "folder: what is only noted must be the same",
    "plainrl/folder.py",
    "before, settings, way_out)\n    text",
    "before, settings | noted, way_out)\n    text",
)
def test_settings_are_kept_beside_the_work(tmp_path):
    """Catches work that goes on with other settings, a damaged file that is written over, and a new commit
    that bars the work of before."""
    path = tmp_path / "config.json"
    folder.keep_settings("--x", tmp_path, {"a": 1}, "way out", commit="old")
    assert json.loads(path.read_text()) == {"a": 1, "commit": "old"}
    folder.keep_settings("--x", tmp_path, {"a": 1}, "way out", commit="new")
    assert path.read_text() == '{\n "a": 1,\n "commit": "new"\n}\n'
    with pytest.raises(SystemExit, match="^error: --x .*: a was 1 and is now 2; way out$"):
        folder.keep_settings("--x", tmp_path, {"a": 2}, "way out")
    path.write_text("[1, 2]")
    with pytest.raises(SystemExit, match="^error: --x .*: its config.json is damaged; put it back, or"):
        folder.keep_settings("--x", tmp_path, {"a": 1}, "way out")
    assert path.read_text() == "[1, 2]"


@mutant(
    "samples: half a batch kept",
    "plainrl/samples.py",
    "lines[: len(lines) - len(lines) % batch]",
    "lines[: len(lines)]",
)
@mutant(
    "samples: a small last batch is sampled again",
    "plainrl/samples.py",
    "if len(lines) < len(places):",
    "if True:",
)
@mutant("samples: those of other problems", "plainrl/samples.py", "place.items() <= row.items()", "row")
@mutant("samples: more than there are", "plainrl/samples.py", " or len(lines) > len(places):", ":")
@mutant(
    "samples: what is cut off stays", "plainrl/samples.py", "os.truncate(path, sum(map(len, lines)))", "pass"
)
def test_samples_of_whole_batches_are_kept(tmp_path):
    """Catches half a batch that is not sampled again, a whole one that is, and samples of other problems or
    damaged ones that are taken, or lost by a second look."""
    path = tmp_path / "samples.jsonl"
    places = [{"index": index, "sample": sample} for index in (4, 0, 7) for sample in range(2)]
    rows = [place | {"text": "ß"} for place in places]
    lines = [json.dumps(row).encode() + b"\n" for row in rows]
    assert samples.finished_samples(path, places, 4) == [] and not path.exists()
    for written, kept in (
        (b"", 0),
        (b"".join(lines[:3]), 0),
        (b"".join(lines[:4]), 4),
        (b"".join(lines[:5]) + b'{"index": 7, "te', 4),
        (b"".join(lines)[:-1], 4),
        (b"".join(lines), 6),
    ):
        path.write_bytes(written)
        assert samples.finished_samples(path, places, 4) == rows[:kept]
        assert path.read_bytes() == b"".join(lines[:kept])
    for damaged in (
        [*lines, lines[0]],
        [lines[2], *lines[1:]],
        [lines[1], lines[0], *lines[2:]],
        [b"[1]\n", *lines[1:]],
        [b"{broken\n", *lines[1:]],
        [line.replace(b"index", b"number") for line in lines],
    ):
        path.write_bytes(b"".join(damaged))
        with pytest.raises(SystemExit, match="^error: .*: is damaged, or not of these problems; delete it"):
            samples.finished_samples(path, places, 4)
        assert path.read_bytes() == b"".join(damaged)


def test_work_is_kept_line_by_line(tmp_path):
    """Catches half a line that a kill left and that is read, a line that is lost, and a full disk that is a
    traceback."""
    path = tmp_path / "log.jsonl"
    assert folder.whole_lines(path) == []
    folder.append_or_fail(path, [{"a": "ß"}, {"a": 2}])
    folder.append_or_fail(path, [{"a": 3}])
    lines = folder.whole_lines(path)
    assert [json.loads(line)["a"] for line in lines] == ["ß", 2, 3]
    path.write_bytes(path.read_bytes() + b'{"a": 4}')
    assert folder.whole_lines(path) == lines
    path.write_bytes(b'{"a"')
    assert folder.whole_lines(path) == []
    with pytest.raises(
        SystemExit, match="^error: .*full: cannot be written .No space left on device.; the same"
    ):
        (tmp_path / "full").symlink_to("/dev/full")
        folder.append_or_fail(tmp_path / "full", [{"a": 1}])

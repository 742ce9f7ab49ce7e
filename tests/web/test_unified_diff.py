"""Diffs of git as the page reads them: real ones, cut ones and hostile ones."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from steadyhand.testing.service import run_git
from steadyhand.web import unified_diff
from steadyhand.web.unified_diff import file_tree, parse_diff, split_rows


def commit(folder: Path, message: str) -> str:
    run_git(folder, "add", "-A")
    run_git(folder, "commit", "-q", "-m", message)
    return run_git(folder, "rev-parse", "HEAD")


def test_a_real_diff_has_its_files_changes_and_line_numbers(tmp_path: Path) -> None:
    run_git(tmp_path, "init", "-q")
    (tmp_path / "sub dir").mkdir()
    (tmp_path / "kept.py").write_text("".join(f"line {number}\n" for number in range(1, 41)))
    (tmp_path / "sub dir" / "gone.txt").write_text("gone\n")
    (tmp_path / "moved.txt").write_text("the same text\nin two lines\n")
    (tmp_path / "picture.bin").write_bytes(bytes(range(256)))
    before = commit(tmp_path, "before")
    lines = (tmp_path / "kept.py").read_text().splitlines(keepends=True)
    lines[1], lines[38] = "--- changed\n", "@@ -1,2 +3,4 @@\n"
    (tmp_path / "kept.py").write_text("".join(lines).rstrip("\n"))
    (tmp_path / "sub dir" / "gone.txt").unlink()
    (tmp_path / "moved.txt").rename(tmp_path / "sub dir" / 'umzug ä".txt')
    (tmp_path / "picture.bin").write_bytes(bytes(range(255)))
    (tmp_path / "new.txt").write_text("diff --git a/x b/x\n")
    after = commit(tmp_path, "after")
    parsed = parse_diff(run_git(tmp_path, "diff", "-M", before, after))
    files = {file.path: file for file in parsed.files}
    assert {path: file.change for path, file in files.items()} == {
        "kept.py": "changed",
        "moved.txt" if "moved.txt" in files else 'sub dir/umzug ä".txt': "renamed",
        "new.txt": "added",
        "picture.bin": "changed",
        "sub dir/gone.txt": "deleted",
    }
    kept = files["kept.py"]
    assert (kept.insertions, kept.deletions, len(kept.hunks)) == (3, 3, 2)
    changed = [
        (line.kind, line.before, line.after, line.text) for line in kept.hunks[0].lines if line.kind != "same"
    ]
    assert changed == [("removed", 2, None, "line 2"), ("added", None, 2, "--- changed")]
    assert ("added", None, 39, "@@ -1,2 +3,4 @@") in [
        (line.kind, line.before, line.after, line.text) for line in kept.hunks[1].lines
    ]
    assert [line.text for line in files["new.txt"].hunks[0].lines] == ["diff --git a/x b/x"]
    assert files["picture.bin"].notes == ["Binary files a/picture.bin and b/picture.bin differ"]
    assert files['sub dir/umzug ä".txt'].old_path == "moved.txt"


def test_the_tree_has_each_folder_once() -> None:
    parsed = parse_diff(
        "".join(f"diff --git a/{path} b/{path}\n" for path in ("b/x/1", "a", "b/x/2", "b/3", "c/x/1"))
    )
    rows = [(row.depth, row.name, row.index) for row in file_tree(parsed.files)]
    assert rows == [
        (0, "a", 1),
        (0, "b", None),
        (1, "3", 3),
        (1, "x", None),
        (2, "1", 0),
        (2, "2", 2),
        (0, "c", None),
        (1, "x", None),
        (2, "1", 4),
    ]


def test_removed_lines_stand_beside_the_added_ones_that_follow() -> None:
    body = "-a\n-b\n+c\n d\n+e\n-f\n-g\n"
    (file,) = parse_diff(f"diff --git a/x b/x\n@@ -1,5 +1,3 @@\n{body}").files
    rows = [
        (None if old is None else old.text, None if new is None else new.text)
        for old, new in split_rows(file.hunks[0])
    ]
    assert rows == [("a", "c"), ("b", None), ("d", "d"), (None, "e"), ("f", None), ("g", None)]


def test_a_huge_diff_is_bounded() -> None:
    body = "".join(f"+line {number}\n" for number in range(20_000))
    many = "".join(f"diff --git a/{number} b/{number}\n" for number in range(2_000))
    deep = "/".join(["d"] * 2_000)
    parsed = parse_diff(
        f"diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -0,0 +1,20000 @@\n{body}diff --git a/{deep} b/{deep}\n{many}"
    )
    assert sum(len(hunk.lines) for file in parsed.files for hunk in file.hunks) == unified_diff.MAX_LINES
    assert parsed.files[0].omitted_lines == 20_000 - unified_diff.MAX_LINES
    assert parsed.files[0].insertions == 20_000
    assert (len(parsed.files), parsed.omitted_files) == (
        unified_diff.MAX_FILES,
        2_002 - unified_diff.MAX_FILES,
    )
    assert max(row.depth for row in file_tree(parsed.files)) <= 12


def test_long_and_hostile_lines_are_cut_and_shown_as_text() -> None:
    parsed = parse_diff("diff --git a/x b/x\n@@ -1 +1 @@\n-\x1b[31m\u202e\n+" + "y" * 10_000 + "\n")
    removed, added = parsed.files[0].hunks[0].lines
    assert removed.text == "⟨U+202E⟩"
    assert len(added.text) == unified_diff.MAX_LINE_LENGTH


@given(
    st.lists(
        st.sampled_from(
            [
                "diff --git a/x b/x\n",
                'diff --git "a/\\303\\244" "b/x"\n',
                "--- a/x\n",
                "+++ /dev/null\n",
                "@@ -1,3 +1,4 @@\n",
                "@@ -0,0 +1 @@ f\n",
                "+a\n",
                "-b\n",
                " c\n",
                "\\ No newline\n",
                "rename from y\n",
                "GIT binary patch\n",
                "\n",
                "@@ -999999999,999999999 +1 @@\n",
                'rename to "\n',
            ]
        ),
        max_size=40,
    ).map("".join)
)
def test_any_lines_in_any_order_are_read(text: str) -> None:
    parsed = parse_diff(text)
    assert len(file_tree(parsed.files)) >= len(parsed.files)
    for file in parsed.files:
        shown = [line for hunk in file.hunks for line in hunk.lines]
        assert len(shown) + file.omitted_lines >= file.insertions + file.deletions

"""`attnc verify` on a GPU: a built folder is right; a kernel that reads where nothing is is wrong, and others still run."""

from __future__ import annotations

from pathlib import Path

from test_verify import TEXT

from attnc.codegen.build import Options, build
from attnc.codegen.verify.report import VerifyReport
from attnc.codegen.verify.verify import verify
from attnc.compiler import check_text


def verified(folder: Path) -> VerifyReport:
    return verify(folder, "cuda", ["bfloat16"], lambda _: None)


def test_a_built_folder_is_right(tmp_path: Path) -> None:
    build(check_text(TEXT, "small.attn"), tmp_path / "small", Options())
    report = verified(tmp_path / "small")
    assert report.right, [row for row in report.rows if row.verdict == "wrong"]
    assert report.machine is not None
    assert report.machine.way == "gpu"


def test_a_kernel_that_reads_where_nothing_is_does_not_hide_others(tmp_path: Path) -> None:
    build(check_text(TEXT, "small.attn"), tmp_path / "small", Options())
    path = tmp_path / "small" / "kernels" / "softmax_decode_0.py"
    text = path.read_text("utf-8")
    assert text.count("start = tl.load(past + sequence)") == 1
    path.write_text(text.replace("start = tl.load(past + sequence)", "start = tl.load(past + sequence + (1 << 40))"), "utf-8")
    report = verified(tmp_path / "small")
    names = {row.kernel for row in report.rows}
    verdicts = {name: {row.verdict for row in report.rows if row.kernel == name} for name in names}
    assert verdicts.pop("softmax_decode_0") == {"wrong"}
    assert all(found == {"right"} for found in verdicts.values()), verdicts
    assert set(verdicts) == {file.stem for file in path.parent.glob("*_0.py")} - {"softmax_decode_0"}

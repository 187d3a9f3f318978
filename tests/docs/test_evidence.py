"""What docs/evidence holds: reports are made from it, and docs/results.md has their tables."""

from pathlib import Path

import pytest

from dpk_det.comparison.command import run

ROOT = Path(__file__).parents[2]
FOLDERS = sorted(path for path in (ROOT / "docs" / "evidence").iterdir() if path.is_dir())
# suite -> folder of its evidence; suites of the same trainings share one
EVIDENCE = {path.name: path for path in FOLDERS}
EVIDENCE["shapes_few_teachers"] = EVIDENCE["shapes_few"]


@pytest.mark.parametrize("name", EVIDENCE)
def test_the_results_page_has_the_table_of_the_evidence(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    folder, suite = EVIDENCE[name], f"configs/compare/{name}.yaml"
    where = ["--output", tmp_path / "report", "--runs", tmp_path / "runs"]
    run([suite, "--report-only", "--evidence", str(folder), *map(str, where)])
    printed = capsys.readouterr().out.splitlines()
    table = [line for line in printed if line.startswith("|")]
    assert len(table) > 3
    page = (ROOT / "docs" / "results.md").read_text().splitlines()
    assert [line for line in table if line not in page] == []


def test_no_path_of_a_machine_is_kept():
    texts = [path.read_text() for folder in FOLDERS for path in folder.rglob("*") if path.is_file()]
    assert not [line for text in texts for line in text.splitlines() if ": /" in line]

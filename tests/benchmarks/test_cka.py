"""The benchmark of CKA: its rivals estimate the same, and are found where they are installed."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "cka.py"
# not by its name, which a public package has too
spec = importlib.util.spec_from_file_location("benchmark_of_cka", SCRIPT)
cka = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cka)


def test_all_functions_give_the_same_value():
    functions = {"ours": cka.linear_cka, "direct": cka.direct_cka, **cka.public_functions()}
    found = cka.measure(functions, n=64, channels=8, repeats=1, device="cpu")
    for seconds, peak, value in found.values():
        assert seconds > 0 and peak > 0
        assert value == pytest.approx(found["ours"][2], abs=1e-5)
    assert 0.3 < found["ours"][2] < 0.9  # inputs alike by half


def test_the_direct_formula_takes_memory_by_the_square():
    peaks = [
        cka.measure({"direct": cka.direct_cka, "ours": cka.linear_cka}, n, 8, 1, "cpu")
        for n in (128, 512)
    ]
    direct, ours = ([x[name][1] for x in peaks] for name in ("direct", "ours"))
    assert direct[1] > 15 * direct[0]
    assert ours[1] < 5 * ours[0]


def test_a_package_of_the_script_s_own_name_is_found_elsewhere(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "cka", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    path = list(sys.path)
    (tmp_path / "cka.py").write_text("cka_from_features = 'theirs'\n")
    assert cka.public_functions()["pytorch-cka"] == "theirs"
    assert sys.path == path
    monkeypatch.delitem(sys.modules, "cka")


def test_what_is_not_installed_is_told(monkeypatch, capsys):
    monkeypatch.setattr(cka, "import_other", lambda name: None)
    argv = ["cka.py", "--most", "256", "--repeats", "1", "--channels", "4", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", argv)
    cka.main()
    said = capsys.readouterr().out
    assert "not run: pytorch-cka" in said and "not run: ckatorch" in said
    assert f"{torch.get_num_threads()} threads" in said
    (row,) = [line for line in said.splitlines() if line.startswith("| 256 ")]
    assert len(row.strip("|").split("|")) == 6

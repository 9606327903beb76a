"""The script that tells whether a recipe holds on other photos."""

import runpy
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "scripts" / "robustness.py"


def test_stages_are_compared_with_a_plain_constant_and_made_once(tiny_recipe, tmp_path, monkeypatch, capsys):
    options = ["--recipe", str(tiny_recipe), "--output-dir", str(tmp_path), "--photos", "8", "--seeds", "2"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *options, "--set", "rounds=1", "--set", "spatial.min_iterations=6"])
    pages = []
    for _ in range(2):
        runpy.run_path(str(SCRIPT), run_name="__main__")
        pages.append((tmp_path / "robustness.md").read_text())
        assert "## 8 photos" in capsys.readouterr().out
    # The minutes, too, are those of the run that made it.
    assert pages[0] == pages[1]
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in pages[0].splitlines() if line.startswith("|")
    ]
    header, rows = lines[0], {line[0]: line for line in lines[2:]}
    assert {len(line) for line in lines} == {len(header)}
    baseline = rows["stage 0, constant 0.3: fixed_crf"]
    assert rows["bce: fixed_crf"][1:4] == baseline[1:4] and rows["bce: fixed_crf"][-1] == ""
    low, high = (float(part) for part in baseline[2].split(" to "))
    assert low <= float(baseline[1]) <= high
    assert any(name.startswith("round_1") for name in rows)
    assert (tmp_path / "photos8-seed1" / "run.json").is_file()

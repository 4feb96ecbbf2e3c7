"""The README's Python runs as it stands, only with fewer epochs."""

import re
from pathlib import Path

from amun_ext import models

README = Path(__file__).parents[1] / "README.md"


def test_readme_code_runs(tmp_path, monkeypatch, capsys) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.S)
    assert len(blocks) == 2
    monkeypatch.chdir(tmp_path)
    model = models.build("small-cnn", num_classes=10, in_channels=1)
    models.save_checkpoint("amun-demo/original.safetensors", model, {})
    code = re.sub(r"epochs=\d+", "epochs=1", "\n".join(blocks))
    exec(compile(code, str(README), "exec"), {})
    assert Path("report.html").exists()
    assert Path("adversarial.safetensors").exists()
    assert "AMUN without D_R" in capsys.readouterr().out

"""What is proven of ε with canaries: the last model alone, by the commands that anybody would type.

    python benchmarks/canaries.py worst FOLDER         ε = 10, one gradient canary a model
    python benchmarks/canaries.py thousands FOLDER     the same with 10,000 models
    python benchmarks/canaries.py mislabelled FOLDER   ε = 68.5, 1,000 mislabelled canaries

Each prints what `mico_exp.audit` writes of the scenario. FOLDER is made, and a run in one that is
there goes on.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
WORST = [
    *("dataset=digits", "canary=gradient", "canary.one_per_model=true"),
    # Every record in every batch: of the last model as much is seen as of every step, for the sum
    # of the steps is a Gaussian mechanism of the same μ. The canary's gradient is always clipped.
    *("dataset.len_training=200", "dataset.recipe.batch_size=200", "dataset.recipe.steps=10"),
    *("dataset.recipe.optimizer.lr=100", "dataset.recipe.optimizer.momentum=0"),
    *("dataset.recipe.clip_norm=0.1", "dataset.recipe.accountant=pld"),
    "dataset.phases={train: 400, dev: 500, final: 500}",
]
THOUSANDS = [*WORST[:-1], "dataset.phases={train: 1000, dev: 4500, final: 4500}"]
MISLABELLED = [
    *("dataset=digits", "canary=mislabelled", "canary.count=1000"),
    *("dataset.recipe.accountant=pld", "dataset.phases={train: 20, dev: 1, final: 1}"),
]
LOOSE = """name: loose
challenge: ${dataset.name}${canary.suffix}
epsilon: 68.5
delta: 1e-5
disclose_training: false
known_sample: null
"""
PARTS = {  # options, scenario, metrics, formulas
    "worst": (WORST, "hi", "canary_projection,loss", "none"),
    "thousands": (THOUSANDS, "hi", "canary_projection,loss", "none"),
    "mislabelled": (MISLABELLED, "loose", "loss,canary_projection", "none,1,offset,lira_shrunk"),
}


def main(part: str, folder: Path) -> None:
    options, scenario, metrics, formulas = PARTS[part]
    option = folder / "options" / "scenario" / "loose.yaml"
    option.parent.mkdir(parents=True, exist_ok=True)
    option.write_text(LOOSE)
    options = [f"--config-dir={folder / 'options'}", *options]
    cell = [
        *options,
        f"scenario={scenario}",
        f"metric={metrics}",
        f"formula={formulas}",
        "plots=off",
        "-m",
    ]
    command(folder, "mico_exp.build", *options, f"scenario={scenario}")
    command(folder, "mico_exp", *cell)
    command(folder, "mico_exp.audit", *options, f"scenarios=[{scenario}]")
    for file in (folder / "audits").glob("*.json"):
        print(json.dumps(json.loads(file.read_text())["scenarios"], indent=1))


def command(folder: Path, module: str, *arguments: str) -> None:
    start = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", module, *arguments]
    subprocess.run(line, cwd=folder, env=environment, check=True)
    print(f"{module}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]).resolve())

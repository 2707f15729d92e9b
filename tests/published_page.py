"""docs/published.md: every kind of the zoo with its counts, and the parity of live models, from a run of the tests.

    python -m tests.published_page     # runs the parity tests and writes the page, about two minutes on 2 cores
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

PAGE = pathlib.Path(__file__).resolve().parents[1] / "docs" / "published.md"
TESTS = ("tests/models/test_against_diffusers.py", "tests/models/test_text_encoders.py", "tests/test_clip.py", "tests/test_publishing.py",
         "tests/interop/test_pipelines.py")
ASKED = {"kl-f8": "kl-f8, sd-vae and sdxl-vae differ in their scale only", "sd-vae": "", "sdxl-vae": "",
         "sd2-base": "sd2-base predicts noise, sd2 predicts v: the same tensors", "sd2": ""}
DIFFERS = "A VQModel folder without scaling_factor is read with 1, as it was trained; stock diffusers divides by 0.18215."


def zoo_table() -> list[str]:
    from ldm_jax.interop.zoo import ZOO
    from tests.interop.test_zoo import FIRST_STAGES, NETWORKS

    lines = ["| kind | parameters, M | tensors | schedule, prediction | told | first stage | `--kind` |", "|---|---:|---:|---|---|---|---|"]
    for kind, (millions, tensors) in (FIRST_STAGES | NETWORKS).items():
        row = ZOO[kind]
        sections, stage = row.sections, row.first_stage
        schedule = "{start:g} to {end:g}, ".format(**sections["schedule"]) + sections["prediction"]["name"] if sections else ""
        conditioner = sections.get("conditioner", {})
        told = " and ".join(part["name"] for part in conditioner.get("parts", (conditioner,)) if part) if sections else ""
        named = f"{stage['bottleneck']['name']} f{2 ** (len(stage['multipliers']) - 1)} x {row.scale_factor or 'its own'}"
        lines.append(f"| {kind} | {millions:.2f} | {tensors} | {schedule} | {told} | {named} | {'needed' if kind in ASKED else ''} |")
    return lines


def parity_table(rows: list[dict]) -> list[str]:
    lines = ["| test | what | tensors | parameters | relative L2 | largest difference |", "|---|---|---:|---:|---:|---:|"]
    for row in sorted(rows, key=lambda row: (TESTS.index(row["test"].split("::")[0]), row["test"])):
        file, _, case = row["test"].partition("::")
        counts = (f"{row['tensors']:,}", f"{row['parameters']:,}") if row["tensors"] else ("", "")
        lines.append(f"| {pathlib.Path(file).stem}::{case} | {row['name']} | {counts[0]} | {counts[1]} | {row['relative']:.1e} | "
                     f"{row['largest']:.1e} |")
    return lines


def page(rows: list[dict]) -> str:
    return "\n".join([
        "# Published models", "",
        "Made by `python -m tests.published_page`, from a run of the tests. How to use them: README, \"Use published weights\".", "",
        "## What is read and written", "",
        "Parameters and tensors of the U-Net, or of a first stage alone, in the CompVis layout; all equal the published counts "
        "(`pytest tests/interop/test_zoo.py -m \"slow or not slow\"`). A file is recognised from its tensors' names and shapes; where "
        "these fit several kinds, `--kind` says which. `configs/published.py:KIND` is each as a config to train.", "", *zoo_table(), "",
        *(f"- {told}." for told in ASKED.values() if told), f"- {DIFFERS}", "", "## Parity", "",
        "Small models with random weights, made live by others, read by their own names; float32 on a CPU. Limits: 1e-5 a network, 1e-4 a "
        "whole pipeline.", "", *parity_table(rows), ""])


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        kept = pathlib.Path(folder) / "parity.jsonl"
        subprocess.run([sys.executable, "-m", "pytest", "-q", *TESTS], check=True, env=os.environ | {"LDM_JAX_PARITY": str(kept)})
        PAGE.write_text(page([json.loads(line) for line in kept.read_text().splitlines()]), encoding="utf-8")
    print(f"{PAGE.name} written")


if __name__ == "__main__":
    main()

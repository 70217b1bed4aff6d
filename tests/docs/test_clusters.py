"""Templates for clusters: each is read by the parsers at hand, and what it starts is a command that there is."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from support import ROOT
from torch.distributed.run import get_args_parser
from typer.main import get_command

from finetune.cli import app

CLUSTER = ROOT / "docs" / "cluster"
VALUES = {
    "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_ID": "7", "first": "node1", "RECIPE": "mug.toml",
    "RUN": "runs/mug", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NUM_GPUS_PER_NODE": "8", "SKYPILOT_NODE_RANK": "1",
    "JOB_COMPLETION_INDEX": "1",
}  # fmt: skip
"""what the cluster fills in"""


def filled(text: str) -> str:
    return re.sub(r"\$\{?\(?(\w+)\)?\}?", lambda named: VALUES[named[1]], text)


def torchrun_of(name: str) -> list[str]:
    """The words after torchrun, as the machine would see them."""
    if name == "kubernetes.yaml":
        _, job = documents(name)
        (container,) = job["spec"]["template"]["spec"]["containers"]
        assert container["command"][0] == "torchrun"
        return [filled(word) for word in container["command"][1:]]
    script = documents(name)[0]["run"] if name.endswith("yaml") else (CLUSTER / name).read_text(encoding="utf-8")
    lines = script.replace("\\\n", " ").splitlines()
    (line,) = [line for line in lines if "torchrun --" in re.sub(r" +", " ", line)]
    return shlex.split(filled(line.partition("torchrun ")[2].rstrip(" &")))


def documents(name: str) -> list[dict]:
    return list(yaml.safe_load_all((CLUSTER / name).read_text(encoding="utf-8")))


def test_every_template_is_tried():
    assert {path.name for path in CLUSTER.iterdir()} == {"slurm.sh", "kubernetes.yaml", "skypilot.yaml"}
    told = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    assert all(f"cluster/{path.name}" in told for path in CLUSTER.iterdir())


@pytest.mark.parametrize("name", ["slurm.sh", "kubernetes.yaml", "skypilot.yaml"])
def test_a_template_starts_ranks_on_two_machines_that_resume_by_themselves(name):
    words = torchrun_of(name)
    own = get_args_parser().parse_args(words)
    assert (own.nnodes, own.nproc_per_node, own.module, own.training_script) == ("2", "8", True, "finetune")
    assert own.rdzv_endpoint or own.master_addr
    command, *arguments = own.training_script_args
    train = get_command(app).commands[command].make_context("train", list(arguments))
    assert train.params["auto"] and Path(train.params["out"]).name == "mug"
    assert Path(train.params["recipe"]).name == "mug.toml"


def test_the_shell_reads_the_slurm_template_and_slurm_its_first_lines():
    path = CLUSTER / "slurm.sh"
    assert subprocess.run(["bash", "-n", path], check=False).returncode == 0
    lines = path.read_text(encoding="utf-8").splitlines()
    body = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    said = [line for line in lines if line.startswith("#SBATCH")]
    assert said == [line for line in lines[:body] if line.startswith("#SBATCH")], "Slurm reads no further than these"
    assert all(re.fullmatch(r"#SBATCH --[a-z-]+(=\S+)?", line) for line in said)
    assert {"#SBATCH --requeue", "#SBATCH --ntasks-per-node=1"} <= set(said)


def test_pods_find_each_other_by_name_and_have_the_time_to_save():
    service, job = documents("kubernetes.yaml")
    spec = job["spec"]
    pod = spec["template"]["spec"]
    assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"] == 2
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["selector"]["job-name"] == job["metadata"]["name"]
    assert pod["subdomain"] == service["metadata"]["name"] and pod["terminationGracePeriodSeconds"] >= 60
    (container,) = pod["containers"]
    assert f"--master-addr={job['metadata']['name']}-0.{pod['subdomain']}" in container["command"]
    assert {one["name"] for one in container["volumeMounts"]} == {one["name"] for one in pod["volumes"]}

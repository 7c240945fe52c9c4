"""The launch scripts are valid, and name commands, flags and environment variables that exist."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import yaml

from alhena.recovery import memory_checkpoint, supervisor

DEPLOY = Path(__file__).parents[2] / "deploy"


def test_the_jobset_is_consistent():
    job = yaml.safe_load((DEPLOY / "gke.yaml").read_text())
    (slices,) = job["spec"]["replicatedJobs"]
    inner = slices["template"]["spec"]
    assert (job["kind"], slices["replicas"], inner["parallelism"]) == ("JobSet", 2, inner["completions"])
    pod = inner["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"][:2] == ["alhena", "pretrain"]
    environment = {variable["name"]: variable["value"] for variable in container["env"]}
    assert environment[supervisor.COORDINATOR] == supervisor.AUTO
    mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    (memory,) = [volume for volume in pod["volumes"] if volume["name"] == mounted[environment["ALHENA_MEMORY"]]]
    # The host's memory outlives the pod.
    assert memory["hostPath"]["path"].startswith(str(memory_checkpoint.MEMORY))
    assert {volume["name"] for volume in pod["volumes"]} == set(mounted.values())
    chips = container["resources"]["limits"]["google.com/tpu"] * inner["parallelism"]
    rows, columns = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    assert chips == rows * columns


def test_the_slurm_script_is_bash_and_the_ray_script_python():
    subprocess.run(["bash", "-n", str(DEPLOY / "slurm.sh")], check=True)
    source = (DEPLOY / "on_ray.py").read_text()
    names = {node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)}
    assert {supervisor.COORDINATOR, supervisor.PROCESSES, supervisor.PROCESS} <= names
    assert f"export {supervisor.COORDINATOR}={supervisor.AUTO}" in (DEPLOY / "slurm.sh").read_text()

"""Is this machine fit to train? Each finding is made, and each bad one says what to do."""

import importlib.metadata
import sys
import tomllib
from types import SimpleNamespace

import pytest
import torch
from packaging.requirements import Requirement
from support import ROOT

from finetune import cli, doctor, optimizers
from finetune.errors import RunError

CORE = {
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "safetensors",
    "huggingface-hub",
    "pydantic",
    "typer",
}


@pytest.fixture(autouse=True)
def requirements(monkeypatch) -> None:
    """Those of pyproject.toml as it is now: an editable install keeps those of its first day."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [f"{r}; extra == '{name}'" for name, rs in project["optional-dependencies"].items() for r in rs]
    monkeypatch.setattr(doctor, "requires", lambda _: project["dependencies"] + extras)


def test_the_ranges_are_those_of_the_installed_package():
    named = {
        r.partition(">")[0].partition("<")[0].strip() for r in importlib.metadata.requires("finetune-diffusion") or []
    }
    assert named >= CORE


def run(capsys, monkeypatch) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["finetune", "doctor"])
    monkeypatch.setattr(cli, "hush", lambda: None)
    code = 0
    try:
        cli.main()
    except SystemExit as e:
        code = int(e.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def versions(monkeypatch, **other: str | None) -> None:
    """Another version of a package, or none (None)."""
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name not in other:
            return real(name)
        if other[name] is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return str(other[name])

    monkeypatch.setattr(doctor, "version", version)


def found(what: str) -> doctor.Finding:
    return next(f for f in doctor.versions() if f.what == what)


def test_the_machine_that_runs_the_tests_is_fit(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "LITTLE_DISK_BYTES", 0)
    monkeypatch.setattr(doctor, "LITTLE_MEMORY_BYTES", 0)
    code, out, err = run(capsys, monkeypatch)
    assert code == 0 and not err, out + err
    *lines, last = out.splitlines()
    assert all(line.startswith("ok") for line in lines) and last == "this machine can train"
    told = {line.split()[1] for line in lines}
    assert told >= CORE | {"optimizer", "disk", "memory"} and told & {"GPU"}
    assert all(f"optimizer {name}" in out for name in optimizers.OPTIMIZERS)
    assert "pytest" not in out, "what only developers need is no business of a user's"


@pytest.mark.parametrize("version", ["1.0.0", "99.0"])
def test_a_version_outside_the_tested_range_is_bad_and_the_command_exits_2(version, capsys, monkeypatch):
    versions(monkeypatch, diffusers=version)
    assert not found("diffusers").ok and f"{version}, tested" in found("diffusers").detail
    code, out, err = run(capsys, monkeypatch)
    assert code == 2 and err.startswith("error: 1 check failed: diffusers")
    bad = out.splitlines().index(next(line for line in out.splitlines() if line.startswith("bad")))
    assert "diffusers" in out.splitlines()[bad] and "try: pip install 'diffusers" in out.splitlines()[bad + 1]


def test_a_local_build_of_a_tested_version_is_fine(monkeypatch):
    versions(monkeypatch, torch="2.13.0+cu130")
    assert found("torch").ok


def test_a_package_that_is_missing_is_bad(monkeypatch):
    versions(monkeypatch, peft=None, bitsandbytes=None)
    assert not found("peft").ok and found("peft").detail == "not installed" and "pip install" in found("peft").hint
    assert not found("bitsandbytes").ok


def test_a_package_that_has_no_wheel_for_this_machine_is_not_asked_for(monkeypatch):
    [text] = [r for r in doctor.requires("") if r.startswith("bitsandbytes")]
    marker = Requirement(text).marker
    assert marker is not None
    wheels = {("linux", "x86_64"), ("linux", "aarch64"), ("win32", "AMD64"), ("win32", "ARM64"), ("darwin", "arm64")}
    for platform in wheels | {("darwin", "x86_64"), ("linux", "ppc64le")}:
        there = dict(zip(("sys_platform", "platform_machine"), platform, strict=True))
        assert marker.evaluate(there) == (platform in wheels), platform
    monkeypatch.setattr(doctor, "requires", lambda _: ["peft>=0", "nothing>=1; sys_platform == 'nowhere'"])
    assert [f.what for f in doctor.versions()] == ["peft"]


def test_an_optimizer_that_fails_does_nothing_or_is_not_there_is_told_apart(monkeypatch):
    def breaking(*_):
        raise RuntimeError("no kernel image is available")

    def absent(*_):
        raise RunError("needs bitsandbytes", "pip install it")

    monkeypatch.setattr(optimizers, "build", breaking)
    failed = doctor.optimizer_steps("adamw")
    assert not failed.ok and "no kernel image" in failed.detail and failed.hint
    monkeypatch.setattr(optimizers, "build", lambda *_: SimpleNamespace(step=lambda: None))
    idle = doctor.optimizer_steps("adamw")
    assert not idle.ok and "does not work" in idle.detail and idle.hint
    monkeypatch.setattr(optimizers, "build", absent)
    missing = doctor.optimizer_steps("adamw8bit")
    assert missing.ok and missing.detail == "needs bitsandbytes" and missing.hint == "pip install it"


def test_a_failing_optimizer_makes_the_command_exit_2(capsys, monkeypatch):
    monkeypatch.setattr(optimizers, "build", lambda *_: SimpleNamespace(step=lambda: None))
    code, out, err = run(capsys, monkeypatch)
    assert code == 2 and f"{len(optimizers.OPTIMIZERS)} checks failed" in err and out.count("try:") >= 2


def test_a_gpu_that_cannot_compute_is_bad(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Test GPU")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1 << 30, 2 << 30))
    ones = torch.ones

    def broken(*size, device=None):
        if device and "cuda" in str(device):
            raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore")
        return ones(*size)

    monkeypatch.setattr(torch, "ones", broken)
    [bad] = doctor.gpus()
    assert not bad.ok and "no kernel image" in bad.detail and "more" not in bad.detail and bad.hint
    monkeypatch.setattr(torch, "ones", lambda *size, device=None: ones(*size))
    [good] = doctor.gpus()
    assert good.ok and "1.0 of 2.0 GiB free, bf16 works" in good.detail


def test_little_disk_and_little_memory_are_bad(monkeypatch, tmp_path):
    assert doctor.room(tmp_path / "not" / "yet").ok == (doctor.shutil.disk_usage(tmp_path).free > 2 << 30)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 30))
    monkeypatch.setattr(doctor.psutil, "virtual_memory", lambda: SimpleNamespace(available=1 << 30))
    for finding in (doctor.room(tmp_path), doctor.memory()):
        assert not finding.ok and "1.0 GiB" in finding.detail and finding.hint

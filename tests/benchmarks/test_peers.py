"""The comparison with other trainers reads their progress as they print it, and holds ratios of pairs against bars."""

import sys
from pathlib import Path

import numpy as np
import peers
import pytest
import torch
from PIL import Image

STAND_INS = Path(peers.__file__).parent / "stand_ins"
TRAINER = """
import json, sys, time
from pathlib import Path
out, kind, steps = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
out.mkdir()
for step in range(steps + 1):
    if kind == "bar":
        sys.stderr.write(f"\\rSteps:  {step}%|###   | {step}/{steps} [00:01<00:09,  9.09it/s]")
        sys.stderr.write(f"\\rSteps:  {step}%|###   | {step}/{steps} [00:01<00:09,  9.09it/s, loss=1.3]")
        sys.stderr.flush()
    elif step:
        print(json.dumps({"event": "stepped", "time": 1.0, "step": step}), flush=True)
    time.sleep(0.05)
(out / "last.safetensors").write_text("weights")
if kind != "bar":
    print(json.dumps({"event": "verified", "time": 1.0}), flush=True)
time.sleep(0.1)
sys.exit(kind == "fails")
"""


def trained(folder: Path, kind: str, steps: int = 4) -> peers.Run:
    script = folder / "trainer.py"
    script.write_text(TRAINER)
    program = peers.Program(
        lambda task, out: [str(script), str(out), kind, str(steps)], "last.safetensors" if kind == "bar" else ""
    )
    return peers.run(peers.Task(folder, 64, steps, folder, folder), program, folder / "out")


@pytest.mark.parametrize("kind", ["bar", "events"])
def test_a_run_is_timed_by_what_it_prints_and_leaves(kind, tmp_path):
    run = trained(tmp_path, kind)
    assert 0.05 < run.first.clock < run.last.clock <= run.file.clock < run.end.clock
    assert run.last.clock - run.first.clock >= 3 * 0.05 and run.step("clock") >= 0.05
    assert run.peak_bytes > 2**20 and run.end.processor > 0


def test_a_run_that_fails_is_no_measurement(tmp_path):
    with pytest.raises(SystemExit, match="ended with 1"):
        trained(tmp_path, "fails")


@pytest.mark.parametrize("text, step", [
    ("Steps:  25%|##5  | 3/12 [00:09<00:27,  9.09s/it, lr=0.001]", "3"),
    ("steps: 100%|####| 12/12 [00:23<00:00,  5.89s/it, avr_loss=1.11]", "12"),
    ("Loading pipeline components...:  80%|### | 4/5 [00:00<00:00, 25.80it/s]", None),
])  # fmt: skip
def test_only_the_bar_of_steps_counts(text, step):
    found = peers.PROGRESS.search(text)
    assert (found and found[1]) == step


def made(step: float, first: float, file: float, peak: int = 1) -> peers.Run:
    at = [peers.Moment(2 * seconds, seconds) for seconds in (first, first + 9 * step, file, file)]
    return peers.Run(*at, steps=10, peak_bytes=peak)


def test_bars_are_held_by_the_median_of_ratios_of_pairs(capsys):
    theirs = made(0.130, 6.0, 20.0)
    fast, slow = made(0.100, 2.9, 19.0), made(0.200, 9.0, 30.0)
    assert peers.report("dreambooth", [(fast, theirs), (fast, theirs), (slow, theirs)]) == []
    assert peers.report("dreambooth", [(fast, theirs), (slow, theirs), (slow, theirs)]) == [
        f"dreambooth: {what}"
        for what in ("steps a second", "time to the first step", "command to file (ours verified)")
    ]
    assert peers.report("kohya", [(made(0.115, 2.9, 19.0), theirs)]) == []
    assert peers.report("dreambooth", [(made(0.115, 2.9, 19.0), theirs)]) == ["dreambooth: steps a second"]
    assert "MISSED" in capsys.readouterr().out


@pytest.fixture
def transforms(monkeypatch):
    monkeypatch.syspath_prepend(STAND_INS)
    for name in ("torchvision", "torchvision.transforms"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    from torchvision import transforms

    yield transforms
    for name in ("torchvision", "torchvision.transforms"):
        sys.modules.pop(name, None)


def test_transforms_that_stand_in_do_as_torchvisions(transforms):
    pixels = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(4, 6, 3)
    picture = Image.fromarray(pixels)
    chain = transforms.Compose([
        transforms.CenterCrop(4), transforms.Lambda(lambda x: x), transforms.ToTensor(),
        transforms.Normalize([0.5], [0.5]),
    ])  # fmt: skip
    expected = torch.from_numpy(pixels[:, 1:5].copy()).permute(2, 0, 1).float() / 255 * 2 - 1
    torch.testing.assert_close(chain(picture), expected)
    assert transforms.Resize(8, transforms.InterpolationMode.LANCZOS)(picture).size == (12, 8)
    assert transforms.RandomCrop(4)(picture).size == (4, 4)
    assert np.array_equal(np.array(transforms.RandomHorizontalFlip(1.0)(picture)), pixels[:, ::-1])
    assert np.array_equal(np.array(transforms.RandomHorizontalFlip(0.0)(picture)), pixels)

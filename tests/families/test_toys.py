"""A video family and an editing family, one file each, go through the run's own path: no other file knows them."""

import dataclasses
import hashlib
import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import bits
import pytest
import torch
from families.toy_edit import ToyEdit, toy_edit
from families.toy_video import ToyVideo, toy_video
from support.bases import t5, t5_tokenizer, tiny_base
from support.bench import bench, settled
from support.photos import pictures

import finetune
from finetune import families
from finetune.data import dataset
from finetune.data.dataset import Placed
from finetune.data.example import Dataset, Example
from finetune.diffusion.process import RectifiedFlow
from finetune.evaluation.effect import losses
from finetune.events import Event
from finetune.families import autoencoder
from finetune.families.base import Conditioning, Prompt, read
from finetune.planning import activations
from finetune.planning.plan import Plan

TOYS: dict[str, Any] = {"toy_video": ToyVideo, "toy_edit": ToyEdit}


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, kind in TOYS.items():
        monkeypatch.setitem(families.FAMILIES, name, f"{kind.__module__}:{kind.__name__}")


def base_of(name: str, root: Path) -> Path:
    if name == "toy_edit":
        return toy_edit(tiny_base(root / "base", "qwen"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return toy_video(root / "base", t5(32), t5_tokenizer(root / "words", 512))


@pytest.fixture
def controls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each picture of a dataset has another one to be made from, as a data source of editing pairs would say it."""
    folder, original = pictures(tmp_path / "before", seed=5), dataset.reading_dataset

    def with_controls(*given: Any) -> Generator[Event, None, Dataset]:
        found = yield from original(*given)
        paired = []
        for example, path in zip(found.examples, sorted(folder.glob("*.png")), strict=False):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            paired.append(example._replace(controls=(Example(path, f"before/{path.name}", "", digest, example.size),)))
        assert len(paired) == len(found.examples)
        return dataclasses.replace(found, examples=tuple(paired))

    monkeypatch.setattr(dataset, "reading_dataset", with_controls)
    return folder


@pytest.mark.parametrize("name", TOYS)
def test_a_family_of_one_file_trains_exports_and_is_verified(name: str, tmp_path: Path, controls: Path) -> None:
    base, out = base_of(name, tmp_path), tmp_path / "run"
    (tmp_path / "run.toml").write_text(f'base = "{base}"\n[data]\npath = "{pictures(tmp_path / "photos")}"\n')
    settings = ["train.steps=2", "train.batch=2", "data.resolution=128", "adapter.rank=4", "validation.count=1",
                "validation.every=2", "sample.prompts=['a cup']", "sample.steps=2", "sample.every=2",
                "optimizer.learning_rate=1e-2"]  # fmt: skip
    bits.finetune("train", str(tmp_path / "run.toml"), "--out", str(out), *(f"--set={s}" for s in settings))
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    assert [e["step"] for e in events if e["event"] == "stepped"] == [1, 2]
    assert any(e["event"] == "validated" for e in events) and list(out.glob("samples/**/*.png"))
    bits.finetune("verify", str(out / "adapter" / "run.safetensors"), "--base", str(base))


@pytest.mark.parametrize("name", TOYS)
def test_no_file_of_the_package_knows_a_toy(name: str) -> None:
    sources = Path(finetune.__file__).parent.rglob("*.py")
    assert not [path for path in sources if name in path.read_text(encoding="utf-8")]


def test_latents_of_a_video_have_an_axis_of_time(tmp_path: Path) -> None:
    b = bench(base_of("toy_video", tmp_path), pictures(tmp_path / "photos"), train__batch=2)
    [batch] = b.step()
    assert batch.latents.shape[:3] == (2, 16, 1) and batch.latents.ndim == 5
    assert b.family.predict(batch.noise, batch.t, batch.given(read(b.family, batch.prompts))).shape == batch.noise.shape
    assert activations.activation_bytes(b.plan)


def test_clips_of_several_frames_train_and_count_all_their_positions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each picture stands still for five frames, which are two of latents."""
    monkeypatch.setattr(ToyVideo, "encode_images", lambda self, pixels: autoencoder.encode(
        self.parts["vae"], pixels.unsqueeze(2).expand(-1, -1, 5, -1, -1).contiguous()
    ))  # fmt: skip
    one = ToyVideo.facts_of
    monkeypatch.setattr(ToyVideo, "facts_of", lambda path: one(path)._replace(frames=2))
    counted, drawn = list[int](), RectifiedFlow.sample_timesteps
    monkeypatch.setattr(
        RectifiedFlow, "sample_timesteps", lambda self, u, cells: counted.append(cells) or drawn(self, u, cells)
    )
    b = bench(base_of("toy_video", tmp_path), pictures(tmp_path / "photos"), train__batch=2)
    [batch] = b.step()
    assert batch.latents.shape == (2, 16, 2, 16, 16) and counted[-1] == 2 * 16 * 16
    assert batch.latents.shape[1:] == b.plan.facts.latent_shape(128, 128)
    assert len(b.train()) == 3
    assert losses(b.plan.train.placed[:1], b.latents, b.captions, b.machine.autocast).mean > 0


def test_a_prompt_is_known_by_its_caption_and_its_pictures(tmp_path: Path, controls: Path) -> None:
    base, data = base_of("toy_edit", tmp_path), pictures(tmp_path / "photos")
    for text in data.glob("*.txt"):
        text.write_text("make it red")
    b = bench(base, data, train__batch=2)
    examples = [placed.example for placed in b.plan.train.placed]
    keys = [Prompt.of(example).key for example in examples]
    assert len(set(keys)) == len(examples) > 1 and {e.caption for e in examples} == {"make it red"}
    texts = [b.captions.read([Prompt.of(example)]).tokens for example in examples]
    assert not torch.allclose(texts[0], texts[1])
    alone = b.captions.family.encode("text_encoder", [Prompt.of(examples[0])]).tokens
    assert torch.allclose(texts[0], alone, atol=1e-5)
    b.family.parts.release("text_encoder")
    [batch] = b.step()
    assert [tuple(one.shape) for one in batch.control] == [tuple(batch.latents.shape)]
    plain = dataclasses.replace(b.plan, train=b.plan.train._replace(placed=_without_controls(b.plan)))
    assert (activations.activation_bytes(b.plan) or 0) > (activations.activation_bytes(plain) or 0) > 0
    given = batch.given(b.captions.read(batch.prompts))
    with torch.no_grad():
        shown, blind = (
            b.family.predict(batch.noise, batch.t, g) for g in (given, Conditioning(given.text, given.size))
        )
    assert shown.shape == blind.shape and not torch.allclose(shown, blind, atol=1e-4)


def _without_controls(plan: Plan) -> tuple[Placed, ...]:
    return tuple(p._replace(example=p.example._replace(controls=())) for p in plan.train.placed)


def test_other_control_pictures_are_another_dataset(tmp_path: Path, controls: Path) -> None:
    base, data = base_of("toy_edit", tmp_path), pictures(tmp_path / "photos")
    before = settled(base, data).data.fingerprint
    first = min(controls.glob("*.png"))
    first.write_bytes(first.read_bytes() + b" ")
    assert settled(base, data).data.fingerprint != before

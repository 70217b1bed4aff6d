"""What every family owes. `contract` is all of it, for a base of any family: import it for one of your own."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.testing import assert_close

from finetune import families
from finetune.adapters import attach as adapters
from finetune.adapters.change import target_shapes
from finetune.data.images.buckets import Bucket
from finetune.families.base import Conditioning, Family, components, read, save
from finetune.files.metadata import About
from finetune.proof import export, verify
from finetune.recipe import LoRA
from finetune.sampling.request import SampleRequest
from finetune.sampling.session import Session
from support.bases import released_is_freed
from support.bench import bench
from support.photos import pictures

ENDS = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
"""of the noise path"""
CAPTIONS = ["a red cup", "", "a long caption, " * 80]


def contract(base: str, out: Path) -> None:
    """Raises AssertionError at the first promise that the family of this base breaks. `out` is an empty folder."""
    family = families.load(base)
    facts_agree_with_the_weights(base, family)
    latents = images_come_and_go(family)
    captions_are_encoded(family)
    the_denoiser_predicts(family, latents)
    targets_are_found(base, family)
    parts_are_saved_and_known_again(family, out / "saved")
    the_pipeline_draws(family)
    all_that_can_be_trained_learns(base)
    two_steps_train_and_every_layout_holds_them(base, out)
    released_is_freed(families.load(base))


def facts_agree_with_the_weights(base: str, family: Family) -> None:
    facts = families.detect(base)
    assert facts.family == family.name and family.facts == facts and family.name in families.registry()
    assert facts.dtype == "fp32" and facts.dtype in facts.described()
    assert facts.resolution % facts.stride == 0 and facts.evidence and "\n" not in facts.evidence
    assert family.process.prediction == facts.prediction
    alpha, _ = family.process.path.scales(family.process.at(ENDS))
    assert (float(alpha[-1]) == 0.0) == facts.zero_snr
    assert family.denoiser_name in components(family)
    skeleton = type(family).on_meta(base, facts)
    assert target_shapes(skeleton) == target_shapes(components(family))
    assert all(p.is_meta for module in skeleton.values() for p in module.parameters())
    for component in components(family).values():
        assert not component.training and not any(p.requires_grad for p in component.parameters())


def images_come_and_go(family: Family) -> Tensor:
    """A bucket that is not square, twice."""
    stride = family.facts.stride
    size = (2 * stride, stride)
    pixels = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    moments = family.encode_images(pixels)
    assert moments.mean.shape == moments.logvar.shape and moments.mean.dtype == moments.logvar.dtype == torch.float32
    one = family.encode_images(pixels[1:])
    assert_close(moments.mean[1:], one.mean, rtol=0, atol=1e-4)
    noise = torch.zeros_like(moments.mean)
    latents = family.latents(moments, noise)
    assert latents.shape == moments.mean.shape and latents.dtype == torch.float32
    spread = family.latents(moments, noise + 1) - latents
    assert bool((spread != 0).all())
    back = family.decode_latents(latents)
    assert back.shape == pixels.shape and back.dtype == torch.float32 and bool(back.isfinite().all())
    vae: Any = family.parts["vae"]
    raw = moments.mean.unsqueeze(2) if "temperal_downsample" in vae.config else moments.mean  # made for videos
    with torch.no_grad():
        assert_close(back, vae.decode(raw).sample.reshape(back.shape), rtol=0, atol=1e-4)
    return latents


def captions_are_encoded(family: Family) -> None:
    text = read(family, CAPTIONS)
    assert text.tokens.shape[0] == 3 and text.tokens.ndim == 3
    for i, caption in enumerate(CAPTIONS):
        alone = read(family, [caption])
        own = text.tokens[i] if text.mask is None else text.tokens[i][text.mask[i]]
        assert_close(alone.tokens[0], own, rtol=0, atol=1e-5)
        assert alone.mask is None or bool(alone.mask.all())
        if text.pooled is not None:
            assert alone.pooled is not None
            assert_close(alone.pooled[0], text.pooled[i], rtol=0, atol=1e-5)
    assert not torch.allclose(text.tokens[0], text.tokens[1], atol=1e-3)
    counter = families.tokenizer(family.base)
    assert counter.limit == family.facts.max_tokens
    assert counter.lost(CAPTIONS[0])[1] == "" != counter.lost(CAPTIONS[2])[1]


def the_denoiser_predicts(family: Family, latents: Tensor) -> None:
    t = family.process.at(ENDS)
    given = Conditioning(read(family, CAPTIONS[:2]))
    with torch.no_grad():
        output = family.predict(latents, t, given)
        assert output.shape == latents.shape and bool(output.isfinite().all())
        assert not torch.allclose(output, family.predict(latents, t.flip(0), given), atol=1e-5)
        assert not torch.allclose(output, family.predict(latents, t, Conditioning(read(family, ["x", "y"]))), atol=1e-6)


def targets_are_found(base: str, family: Family) -> None:
    assert family.presets.keys() == components(family).keys()
    for component, presets in family.presets.items():
        assert {"attention", "attention+ff", "all"} <= presets.keys()
        found = {name: adapters.targets(components(family)[component], presets, name) for name in presets}
        assert all(found.values())
        assert set(found["attention"]) <= set(found["attention+ff"]) <= set(found["all"])
    fresh = families.load(base)
    before = fresh.predict(*_probe(fresh))
    adapters.attach(components(fresh), fresh.presets, _adapter(fresh, "all"), 0)
    assert torch.equal(fresh.predict(*_probe(fresh)), before)


def all_that_can_be_trained_learns(base: str) -> None:
    """No preset names a module that the loss does not reach."""
    fresh = families.load(base)
    trainable = adapters.attach(components(fresh), fresh.presets, _adapter(fresh, "all", text="all"), 0)
    parameters = {f"{c}.{n}": p for c, found in trainable.items() for n, p in found.items()}
    with torch.no_grad():
        for p in parameters.values():
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.1)
    side = 2 * fresh.facts.stride
    cells = fresh.encode_images(torch.zeros(1, 3, side, side)).mean
    noise = torch.randn(cells.shape, generator=torch.Generator().manual_seed(0))
    fresh.predict(
        noise, fresh.process.at(torch.tensor([0.3])), Conditioning(read(fresh, ["a cup"]))
    ).square().sum().backward()
    assert not [n for n, p in parameters.items() if p.grad is None or not p.grad.any()]


def parts_are_saved_and_known_again(family: Family, folder: Path) -> None:
    parts = ["vae", *components(family)]
    save(family, folder, torch.float32)
    again = families.load(str(folder))
    assert [again.fingerprint(part) for part in parts] == [family.fingerprint(part) for part in parts]
    assert len({family.fingerprint(part) for part in parts}) == len(parts)
    assert again.facts._replace(evidence="") == family.facts._replace(evidence="")
    assert_close(again.predict(*_probe(again)), family.predict(*_probe(family)), rtol=0, atol=0)


def the_pipeline_draws(family: Family) -> None:
    side = family.facts.stride
    shot = SampleRequest("a cup", 3, steps=2, width=side, height=side)
    pictures = [Session(family).generate(shot).image for _ in range(2)]
    assert pictures[0].size == (side, side) and pictures[0].tobytes() == pictures[1].tobytes()
    asked = family.pipeline_inputs(read(family, [shot.prompt]), read(family, [shot.negative]), shot.guidance)
    chance = torch.Generator().manual_seed(shot.seed)
    stock = family.pipeline()(**asked, num_inference_steps=2, width=side, height=side, generator=chance).images[0]
    ours, theirs = (torch.frombuffer(bytearray(p.tobytes()), dtype=torch.uint8).int() for p in (pictures[0], stock))
    assert (ours - theirs).abs().max() <= 1  # what is left to us of painting: unpacking and decoding
    assert not any(p.requires_grad for c in components(family).values() for p in c.parameters())


def two_steps_train_and_every_layout_holds_them(base: str, out: Path) -> None:
    b = bench(base, pictures(out / "data"), train__steps=2, train__batch=2, adapter__components=_components(base),
              adapter__alpha=2.0, adapter__targets="attention+ff", adapter__text_encoder_targets="attention",
              optimizer__learning_rate=1e-3, objective__distilled=True)  # fmt: skip
    before = b.weights()
    steps = b.train()
    assert len(steps) == 2 and not any(s.skipped for s in steps)
    changed = {n.partition(".")[0] for n, w in b.weights().items() if not torch.equal(w, before[n])}
    assert changed == set(b.state.trainable)
    b.grow(0.1)  # as after long training: two steps are hardly seen in a picture
    live = adapters.read_changes(components(b.family))
    about = About.of(b.plan.facts)
    done = export.export(live, out / "adapter", "two", ("universal", "diffusers", "merged"), "float32", about, base)
    for file in (done.universal, done.diffusers, done.peft):
        assert file is not None
        report = verify.verify(file, base, live)
        assert report.ok and report.hit == len(live), (file, report.problems)
    assert done.merged is not None
    merged = families.load(str(done.merged.folder))
    for component in components(b.family).values():
        component.eval()
    with torch.no_grad():
        assert_close(merged.predict(*_probe(merged)), b.family.predict(*_probe(b.family)), rtol=0, atol=1e-4)
    opened = families.load(base)
    reopened = Session(opened)
    reopened.load_by_diffusers(out / "adapter" / "two.safetensors")
    live, again, plain = (_picture(s) for s in (Session(b.family), reopened, Session(families.load(base))))
    assert (live - again).abs().max() <= 1 < (live - plain).abs().max()


def _components(base: str) -> tuple[str, ...]:
    family = families.family_class(families.detect(base).family)
    names = ["denoiser" if name == family.denoiser_name else name for name in family.presets]
    return tuple(names)


def _adapter(family: Family, targets: str, text: str = "attention") -> LoRA:
    told = {"rank": 2, "components": _components(family.base), "targets": targets, "text_encoder_targets": text}
    return LoRA.model_validate(told)


def _picture(session: Session) -> Tensor:
    """In steps of brightness."""
    side = 2 * session.family.facts.stride
    shot = SampleRequest("a cup", 3, steps=2, width=side, height=side)
    made = session.generate(shot).image
    return torch.frombuffer(bytearray(made.tobytes()), dtype=torch.uint8).int()


def _probe(family: Family) -> tuple[Tensor, Tensor, Conditioning]:
    cells = Bucket(family.facts.stride, family.facts.stride)
    latents = family.encode_images(torch.zeros(1, 3, cells.height, cells.width)).mean
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return noise, family.process.at(torch.tensor([0.3])), Conditioning(read(family, ["a cup"]))

"""T5 and language models: loaded to read the captions, let go before training, in 8 or 4 bits when asked."""

import dataclasses
import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from families.cases import USUAL
from support.bases import Variant, tiny_base
from support.bench import settled
from support.photos import pictures
from support.runs import train
from torch import Tensor

from finetune import families, recipe
from finetune.errors import RecipeError
from finetune.events import Sampled, unheard
from finetune.families import parts
from finetune.families.base import Conditioning, Prompt, large_encoders, read
from finetune.planning import footprint
from finetune.recipe import Loaded
from finetune.training import begin
from finetune.training import loop as trainer

LARGE = {case.variant: case.large_encoder.part for case in USUAL if case.large_encoder}


@pytest.mark.parametrize("variant", LARGE)
def test_it_is_gone_while_training_and_sampling_and_its_memory_is_free(
    variant: Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, data = tiny_base(tmp_path / "base", variant), pictures(tmp_path / "data")
    plan = settled(base, data, train__steps=2, sample__every=1, sample__steps=2, sample__guidance=1.0,
                   sample__prompts=("a prompt that no caption says",), train__checkpoint_every=2)  # fmt: skip
    loaded = Loaded(recipe.replace(recipe.rewritten(plan.recipe), train__precision="auto"), {}, Path("recipe.toml"))
    seen: list[weakref.ref[Any]] = []
    load, steps = parts.from_pretrained, trainer.train

    def noted(kind: Any, path: Path, part: str, *rest: Any) -> Any:
        made = load(kind, path, part, *rest)
        if part == LARGE[variant]:
            seen.append(weakref.ref(made))
        return made

    def watched(state: Any, batches: Any, *rest: Any) -> Iterator[Any]:
        gc.collect()
        assert len(seen) == 1 and seen[0]() is None, "let go"
        assert LARGE[variant] not in batches.family.parts.loaded()
        yield from steps(state, batches, *rest)
        assert len(seen) == 1, "and not loaded again to sample"

    monkeypatch.setattr(parts, "from_pretrained", noted)
    monkeypatch.setattr(trainer, "train", watched)
    told: list[object] = []
    train(loaded, tmp_path / "run", told.append)
    assert sum(isinstance(e, Sampled) for e in told) == 4  # step 0, 1, 2, and the sheet


@pytest.mark.parametrize("variant", LARGE)
@pytest.mark.parametrize(("bits", "close"), [(8, 0.05), (4, 0.6)])
def test_in_fewer_bits_it_says_nearly_the_same_and_is_kept_apart(
    variant: Variant, bits: int, close: float, tmp_path: Path
) -> None:
    base = str(tiny_base(tmp_path / "base", variant))
    whole, small = families.load(base), families.load(base, text_bits=bits)
    part = LARGE[variant]
    before = small.fingerprint(part)
    with torch.no_grad():
        exact, rounded = (f.encode(part, [Prompt("a red cup")]).tokens for f in (whole, small))
    assert small.fingerprint(part) == before  # the cache knows its captions again
    assert 0 < float((exact - rounded).norm() / exact.norm()) < close
    assert whole.fingerprint(part) != small.fingerprint(part)
    kinds = {type(m).__name__ for m in small.parts[part].modules()}
    assert {8: "Linear8bitLt", 4: "Linear4bit"}[bits] in kinds
    small.parts.to(torch.device("cpu"))  # stays where it is, and nothing is said
    assert small.parts[part] is small.parts.loaded()[part]


@pytest.mark.parametrize("variant", LARGE)
@pytest.mark.parametrize("bits", [None, 8, 4])
def test_the_plan_says_what_it_takes(variant: Variant, bits: int | None, tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base", variant)
    plan = settled(base, pictures(tmp_path / "data"), data__text_encoder_bits=bits)
    family, told = families.load(str(base), text_bits=bits), footprint.encoder_bytes(plan)
    assert told.keys() == set(large_encoders(family))
    for encoder in told:
        module = family.parts[encoder]
        # what the plan takes for embeddings, by name, must be what was not quantised
        scales = sum(m.weight.quant_state.absmax.nbytes for m in module.modules() if type(m).__name__ == "Linear4bit")
        held = {p.untyped_storage()._cdata: p.nbytes for p in module.parameters()}
        held |= {m.weight.CB.untyped_storage()._cdata: m.weight.CB.nbytes for m in module.modules()
                 if type(m).__name__ == "Linear8bitLt" and m.weight.CB is not None}  # fmt: skip
        assert told[encoder] == pytest.approx(sum(held.values()) + scales, rel=0.02), encoder


def test_t5_in_fp16_is_counted_with_what_transformers_keeps_in_float32(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base", "flux")
    plan = settled(base, pictures(tmp_path / "data"))
    plan = dataclasses.replace(plan, recipe=recipe.replace(plan.recipe, train__precision="fp16"))
    module = families.load(str(base), torch.float16).parts["text_encoder_2"]
    assert {p.dtype for p in module.parameters()} == {torch.float16, torch.float32}
    assert footprint.encoder_bytes(plan)["text_encoder_2"] == sum(p.nbytes for p in module.parameters())


def test_bits_for_a_base_without_a_large_encoder_are_refused(tmp_path: Path) -> None:
    base, data = tiny_base(tmp_path / "base", "sdxl"), pictures(tmp_path / "data")
    with pytest.raises(RecipeError, match="has no large text encoder"):
        settled(base, data, data__text_encoder_bits=8)


def test_bits_without_bitsandbytes_are_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, data = tiny_base(tmp_path / "base", "flux"), pictures(tmp_path / "data")
    monkeypatch.setattr("finetune.planning.resolve.find_spec", lambda _: None)
    with pytest.raises(RecipeError, match="needs bitsandbytes"):
        settled(base, data, data__text_encoder_bits=4)


def test_captions_of_other_lengths_are_filled_up_and_masked_in_a_batch(tmp_path: Path) -> None:
    """From the cache as from the encoder: padding changes no prediction."""
    family = families.load(str(tiny_base(tmp_path / "base", "qwen")))
    noisy = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.3, 0.7])
    with torch.no_grad():
        both = family.predict(noisy, t, Conditioning(read(family, ["a", "a much longer caption of many words"])))
        alone: list[Tensor] = [
            family.predict(noisy[i : i + 1], t[i : i + 1], Conditioning(read(family, [c])))
            for i, c in enumerate(["a", "a much longer caption of many words"])
        ]
    torch.testing.assert_close(both, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_what_is_moved_to_encode_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moving a part that is not loaded yet does nothing: it would then encode on the CPU what lies on a GPU."""
    plan = settled(tiny_base(tmp_path / "base", "flux"), pictures(tmp_path / "data"))
    family, device, moved = begin.open_base(plan), begin.open_machine("fp32"), list[str]()

    def watched(self: parts.Parts, device: torch.device, *names: str) -> None:
        assert set(names) <= self.loaded().keys()
        moved.extend(names)

    monkeypatch.setattr(parts.Parts, "to", watched)
    unheard(begin.encode_dataset(plan, family, device))
    assert set(moved) == {"vae", "text_encoder", "text_encoder_2"}

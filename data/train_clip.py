"""A small CLIP of the pocket domain: `python data/train_clip.py OUT`. Its text tower starts the base's text encoder;
the whole of it ships as the pocket eyes, the judge of likeness between pictures, and between picture and caption.

Sources: arXiv:2103.00020; the tokenizer is CLIP's, with merges learnt from the domain's captions.
"""

import json
import random
import time
from pathlib import Path
from typing import Annotated, Any

import icons
import numpy as np
import torch
import typer
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

TOKENS = 32
"""positions of the text tower"""
BATCH = 128
OBJECTS_A_BATCH = 48
"""few, so that captions of one object must tell backgrounds, sizes and places apart"""
PEAK = 1e-3
SPECIAL = ("<|startoftext|>", "<|endoftext|>")
MEAN = STD = [0.5, 0.5, 0.5]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main(
    out: Path,
    px: Annotated[int, typer.Option(help="64 or 128: the side of a picture")] = 64,
    steps: Annotated[int, typer.Option(help="of 128 pairs")] = 800,
) -> None:
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(DEVICE.type == "cpu")
    tokenizer = make_tokenizer(out)
    clip = build(px, len(tokenizer)).to(DEVICE)
    optimizer = torch.optim.AdamW(parameters(clip), betas=(0.9, 0.98), fused=True)
    began, test = time.monotonic(), pairs("clip test", 0, 512, px)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = PEAK * min((step + 1) / 100, 1 - 0.8 * step / steps)
        shown, captions = batch(step, px)
        with torch.autocast(DEVICE.type, torch.bfloat16):
            found = clip(input_ids=ids(tokenizer, captions), pixel_values=worn(shown, step))
        loss = objective(found.logits_per_text.float().cpu(), captions)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            clip.logit_scale.clamp_(max=float(np.log(100)))
        if (step + 1) % 100 == 0 or step + 1 == steps:
            speed = (step + 1) * BATCH / (time.monotonic() - began)
            right = f"{retrieved(clip, tokenizer, *test):.1%}"
            typer.echo(f"{step + 1} steps, {speed:.0f} pairs/s, loss {loss:.3f}, own caption of 512 first: {right}")
            clip.save_pretrained(out)
    CLIPImageProcessor(
        size={"shortest_edge": px}, crop_size={"height": px, "width": px}, image_mean=MEAN, image_std=STD
    ).save_pretrained(out)


def build(px: int, vocabulary: int) -> CLIPModel:
    text = {
        "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4,
        "max_position_embeddings": TOKENS, "vocab_size": vocabulary,
        "bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": vocabulary - 1,
    }  # fmt: skip
    vision = {
        "hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 6,
        "image_size": px, "patch_size": px // 8,
    }  # fmt: skip
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128))


def parameters(clip: CLIPModel) -> list[dict[str, Any]]:
    """Weights decay; biases, norms and the temperature do not."""
    every = list(clip.parameters())
    return [{"params": [p for p in every if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in every if p.ndim <= 1], "weight_decay": 0.0}]  # fmt: skip


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's way of splitting, every byte known, and merges for the words of the captions, the made-up ones included:
    each is one token or a few that are read as nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    words = (icons.scene("words", i).caption for i in range(20000))
    model = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>"))
    model.normalizer = normalizers.Lowercase()
    pattern = Regex(r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    model.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(pattern, "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False),
    ])  # fmt: skip
    model.train_from_iterator(
        words, trainers.BpeTrainer(vocab_size=4000, end_of_word_suffix="</w>", show_progress=False)
    )
    merges = [tuple(merge) for merge in json.loads(model.to_str())["model"]["merges"]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    known = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *("".join(merge) for merge in merges), *SPECIAL]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(known))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=TOKENS)
    tokenizer.save_pretrained(folder)
    return tokenizer


def ids(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    found: Tensor = tokenizer(
        captions, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
    ).input_ids
    return found.to(DEVICE)


def batch(step: int, px: int) -> tuple[Tensor, list[str]]:
    few = random.Random(f"clip/{step}").sample(list(icons.OBJECTS), OBJECTS_A_BATCH)
    return pairs("clip", step * BATCH, BATCH, px, few)


def pairs(seed: str, first: int, count: int, px: int, names: list[str] | None = None) -> tuple[Tensor, list[str]]:
    """((count, 3, px, px) in [-1, 1], captions)"""
    scenes = [icons.scene(seed, i, names) for i in range(first, first + count)]
    drawn = torch.from_numpy(np.stack([icons.render(scene, px) for scene in scenes])).to(DEVICE)
    return drawn.permute(0, 3, 1, 2).float() / 127.5 - 1, [scene.caption for scene in scenes]


def worn(shown: Tensor, step: int) -> Tensor:
    """A third of the pictures blurred, a third noisy: what is judged later was painted by a model."""
    chance = torch.Generator().manual_seed(step)
    b, _, h, _ = shown.shape
    soft = F.interpolate(F.avg_pool2d(shown, 2), size=(h, h), mode="bilinear", align_corners=False)
    noisy = shown + 0.15 * torch.randn(shown.shape, generator=chance).to(DEVICE)
    which = torch.randint(0, 3, (b, 1, 1, 1), generator=chance).to(DEVICE)
    return torch.where(which == 0, soft, torch.where(which == 1, noisy, shown))


def objective(logits: Tensor, captions: list[str]) -> Tensor:
    """Cross entropy both ways; pairs with the same caption are all right."""
    same = torch.tensor([[a == b for b in captions] for a in captions], dtype=torch.float32)
    target = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


@torch.no_grad()
def retrieved(clip: CLIPModel, tokenizer: CLIPTokenizer, shown: Tensor, captions: list[str]) -> float:
    """Share of pictures whose own caption is the nearest."""
    found = clip(input_ids=ids(tokenizer, captions), pixel_values=shown).logits_per_image
    best = found.argmax(1).tolist()
    return sum(captions[b] == own for b, own in zip(best, captions, strict=True)) / len(captions)


if __name__ == "__main__":
    typer.run(main)

"""The model card: pictures, prompts, and the programs that read the adapters of its family, and no others."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from PIL import Image
from support.adapter_files import ABOUT, NAME

from finetune import families
from finetune.adapters.change import AdapterState
from finetune.errors import RunError
from finetune.files.metadata import About, refuse_local
from finetune.proof.card import PromptExample, hub_id, model_card, readers, write_model_card
from finetune.proof.export import export
from finetune.sampling.png import write_png

ROOT = Path(__file__).parents[2]
KOHYA_ONLY = ("AUTOMATIC1111", "Forge", "kohya", "LyCORIS")
UNETS = ("sd", "sdxl")


def front(card: str) -> dict[str, object]:
    told = yaml.safe_load(card.split("---")[1])
    assert isinstance(told, dict)
    return told


@pytest.mark.parametrize("family", list(families.FAMILIES))
def test_a_card_names_the_readers_of_its_own_family_and_no_others(family: str) -> None:
    card = model_card(NAME, replace(ABOUT, family=family), ["universal"])
    [use] = [line for line in card.splitlines() if "works as it is" in line]
    assert all(one in use for one in readers(family, ["universal"])) and "diffusers" in use
    assert [one for one in KOHYA_ONLY if one in use] == (list(KOHYA_ONLY) if family in UNETS else [])
    own = model_card(NAME, replace(ABOUT, family=family), ["diffusers"])
    assert f"`{NAME}-diffusers.safetensors` works as it is, at weight 1, in diffusers.\n" in own


def test_the_table_of_the_readme_names_the_same_readers() -> None:
    titles = {"sd": "Stable Diffusion 1.x", "sdxl": "Stable Diffusion XL", "sd3": "Stable Diffusion 3",
              "flux": "FLUX.1",
              "zimage": "Z-Image", "qwen_image": "Qwen-Image", "flux2": "FLUX.2"}  # fmt: skip
    rows = [line.split("|") for line in (ROOT / "docs/bases.md").read_text().splitlines() if line.startswith("| ")]
    assert titles.keys() == set(families.FAMILIES)
    for name, title in titles.items():
        [row] = [row for row in rows if row[1].strip().startswith(title) and len(row) == 5]
        assert row[3].strip() == ", ".join(readers(name, ["universal"])), title


def test_the_code_of_a_card_runs_as_it_stands(
    tmp_path: Path, base: str, modules: AdapterState, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(modules, tmp_path, NAME, ("universal",), "float32", ABOUT, prompts=['a sks "mug"'])
    code = (tmp_path / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert 'from_pretrained("org/tiny")' in code and r"pipeline(\"a sks" not in code
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    run = code.replace("org/tiny", base).replace(").images", ", num_inference_steps=1, output_type='np').images")
    exec(run, names)
    assert names["image"] is not None


def test_pictures_lie_beside_the_card_and_are_shown_with_their_prompts(tmp_path: Path) -> None:
    drawn = []
    for n in range(3):
        drawn.append(tmp_path / "drawn" / f"{n:02d}.png")
        write_png(Image.new("RGB", (4, 4)), drawn[-1], {"prompt": "a mug", "adapter": "mug.safetensors"})
    sheet = tmp_path / "a sheet.png"
    write_png(Image.new("RGB", (9, 9)), sheet, {"base": "org/tiny"})
    out = tmp_path / "adapter"
    out.mkdir()
    prompts = ['a "sks" mug: on a table', "a mug", "ein Becher, grün"]
    text = write_model_card(out, NAME, ABOUT, ["universal"], prompts, sheet, drawn).read_text()
    links = re.findall(r"\]\(([^)]+)\)", text)
    told = front(text)
    assert told["widget"] == [{"text": p, "output": {"url": f"pictures/{n:02d}.png"}} for n, p in enumerate(prompts)]
    assert (told["base_model"], told["instance_prompt"], told["license"]) == ("org/tiny", "sks", "cc0-1.0")
    assert links == ["sheet.png"] and all(f"- `{p}`" in text for p in prompts)
    for name in (*links, *(f"pictures/{n:02d}.png" for n in range(3))):
        with Image.open(out / name) as image:
            refuse_local({k: str(v) for k, v in image.info.items()})
    assert str(tmp_path) not in text


def test_a_card_without_pictures_prompts_or_words_has_no_empty_parts() -> None:
    bare = About.of(families.detect("pocket"), base="pocket")
    text = model_card(NAME, bare, ["merged"])
    assert "widget" not in text and "## " not in text and "![" not in text and "instance_prompt" not in text
    assert "base_model" not in front(text) and "- Base: pocket" in text


def test_a_card_that_would_name_this_machine_is_refused() -> None:
    with pytest.raises(RunError, match="would publish a local path"):
        model_card(NAME, ABOUT, ["universal"], [PromptExample("a mug of /home/anna/photos")])


@pytest.mark.parametrize(
    "base, found",
    [("org/model", "org/model"), ("org/model@v2", "org/model"), ("org/model + mine.safetensors", "org/model"),
     ("pocket", ""), ("sd15", ""), ("", "")],
)  # fmt: skip
def test_only_a_base_on_the_hub_is_named_to_the_hub(base: str, found: str) -> None:
    assert hub_id(base) == found and ("base_model" in front(model_card(NAME, replace(ABOUT, base=base), []))) == bool(
        found
    )

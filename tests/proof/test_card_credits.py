"""Whose pictures an adapter was trained on is in its file and on its card, without what is nobody's business."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from support.adapter_files import ABOUT, NAME
from support.nasty_folder import picture
from support.runs import short, train

from finetune.data.prepare import prepare
from finetune.errors import RunError
from finetune.files import metadata
from finetune.files.parents import rights_of
from finetune.proof.card import model_card

CREDITS = (
    "2 pictures by Ada, CC-BY-4.0 (https://creativecommons.org/licenses/by/4.0/)\n1 picture by [Bob](javascript:x) <b>"
)


def test_a_card_credits_a_line_for_each_author_and_no_name_becomes_a_link() -> None:
    card = model_card(
        NAME, replace(ABOUT, dataset_license="2 pictures CC-BY-4.0 (Ada)", dataset_credits=CREDITS), ["universal"]
    )
    assert "- Images' licence: 2 pictures CC-BY-4.0 (Ada)\n" in card
    assert (
        "## Credits\n" in card
        and "- 2 pictures by Ada, CC-BY-4.0 (https://creativecommons.org/licenses/by/4.0/)\n" in card
    )
    assert "- 1 picture by \\[Bob](javascript:x) \\<b>\n" in card
    assert "## Credits" not in model_card(NAME, ABOUT, ["universal"])


def test_credits_of_another_file_are_cleaned_line_by_line() -> None:
    about = replace(
        ABOUT, dataset_credits="1 picture by Ada\n1 picture by Bob, from /home/bob/secret/1.jpg"
    ).published()
    assert about.dataset_credits == "1 picture by Ada\n1 picture by Bob, from …"
    with pytest.raises(RunError, match="would publish a local path"):
        metadata.refuse_local({"finetune.dataset_credits": "from /home/bob/secret/1.jpg"}, ABOUT)


def test_a_card_says_what_the_adapter_before_says_of_its_licence() -> None:
    told = model_card(NAME, replace(ABOUT, parent="ab", parent_license="CC-BY-NC-4.0, by [Eve](x)"), ["universal"])
    assert "- Started from: another adapter: CC-BY-NC-4.0, by \\[Eve](x)\n" in told
    assert "another adapter: which says no licence\n" in model_card(NAME, replace(ABOUT, parent="ab"), ["universal"])
    assert "Started from" not in model_card(NAME, replace(ABOUT, parent=""), ["universal"])


def test_licences_of_any_adapter_are_read_from_its_header(tmp_path: Path) -> None:
    def file(name: str, told: dict[str, str]) -> Path:
        save_file({"a": torch.zeros(1)}, tmp_path / name, told)
        return tmp_path / name

    foreign = file("foreign.safetensors", {"modelspec.license": "CC-BY-NC-4.0", "modelspec.author": "Eve"})
    assert rights_of(foreign) == ("CC-BY-NC-4.0, by Eve", "")
    assert rights_of(file("silent.safetensors", {})) == ("", "")
    ours = replace(ABOUT, license="MIT", dataset_license="2 pictures CC-BY-4.0 (Ada)", dataset_credits=CREDITS,
                   parent_license="Proprietary")  # fmt: skip
    own = file("own.safetensors", {f"finetune.{f.name}": str(getattr(ours, f.name)) for f in fields(ours)})
    assert rights_of(own) == ("MIT, its images: 2 pictures CC-BY-4.0 (Ada), before it: Proprietary", CREDITS)


@pytest.mark.whole
def test_the_sums_of_a_run_are_in_its_file_and_card_and_private_things_are_not(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    for n in range(4):
        picture(n, (64, 64)).save(root / f"{n}.png")
        (root / f"{n}.txt").write_text(f"a sks mug, number {n}")
    (root / "0.license").write_text(
        "SPDX-License-Identifier: CC-BY-4.0\nSPDX-FileCopyrightText: 2024 Ada <ada@example.org>"
    )
    for n in (1, 2):
        (root / f"{n}.license").write_text("proprietary")
    data = tmp_path / "data"
    prepare(root, data, trigger="sks", class_word="mug")
    out = tmp_path / "out"
    done = train(short(data, train__steps=2, export__license="MIT"), out)
    with safe_open(done.path, "pt") as file:
        said = file.metadata()
    assert said["finetune.dataset_license"] == "2 pictures Proprietary, 1 CC-BY-4.0 (Ada), 1 without a licence"
    assert (
        said["finetune.dataset_credits"] == "1 picture by Ada, CC-BY-4.0 (https://creativecommons.org/licenses/by/4.0/)"
    )
    assert said["modelspec.license"] == "MIT", "the adapter's own is another matter"
    card = (out / "adapter" / "README.md").read_text()
    assert "- Images' licence: 2 pictures Proprietary" in card and "- 1 picture by Ada, CC-BY-4.0" in card
    assert 'license: "MIT"' in card and "ada@example.org" not in card + "".join(said.values())
    for file in root.glob("*.license"):
        file.unlink()
    prepare(root, tmp_path / "plain", trigger="sks", class_word="mug")
    again = train(short(tmp_path / "plain", train__steps=2, adapter__init_from=done.path), tmp_path / "again")
    with safe_open(again.path, "pt") as file:
        later = file.metadata()
    assert later["finetune.parent_license"] == f"MIT, its images: {said['finetune.dataset_license']}"
    assert later["finetune.dataset_credits"] == said["finetune.dataset_credits"]
    card = (tmp_path / "again" / "adapter" / "README.md").read_text()
    assert "- Started from: another adapter: MIT, its images: 2 pictures Proprietary" in card
    assert "- 1 picture by Ada, CC-BY-4.0" in card and "license:" not in card

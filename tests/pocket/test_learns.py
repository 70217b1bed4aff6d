"""Did it learn what the user meant? Trains on the pocket base, and fails when training is broken."""

import io
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from referee.classifier import judge
from support.runs import train

import finetune
from finetune import recipe
from finetune import resources as shipped
from finetune.data import dataset
from finetune.errors import TrainError
from finetune.evaluation import similarity as likeness
from finetune.events import Warned

pytestmark = pytest.mark.usefixtures("whole_judgement")
STEPS = {"product": 160, "style": 120}
COLOURS = ["purple", "black", "brown", "teal"]
OBJECTS = ["car", "banana", "cat face", "strawberry"]
HELD_OUT = {
    "product": [f"a {{trigger}} cup on a {colour} background" for colour in COLOURS],
    "style": [f"a {name}, {{trigger}} style" for name in OBJECTS],
}


class Trained:
    """A run, and its last pictures: drawn from the exported file, and by the base at the same seeds."""

    def __init__(self, kind: str, out: Path, *sets: str) -> None:
        prompts = json.dumps(HELD_OUT[kind])
        # few steps at a high rate, without the prior, which doubles the time and is not what is asked here
        always = [f"train.steps={STEPS[kind]}", "optimizer.learning_rate=1e-3", "sample.every=0",
                  "train.checkpoint_every=1000", 'prior.mode="off"', f"sample.prompts={prompts}"]  # fmt: skip
        self.warnings: list[str] = []
        self.result = train(recipe.load(Path(f"pocket-{kind}"), [*always, *sets]), out, self._hear)
        self.pictures = self._row(out, out.name)
        self.base = self._row(out, "base")

    def _hear(self, event: object) -> None:
        if isinstance(event, Warned):
            self.warnings.append(event.text)

    @staticmethod
    def _row(out: Path, name: str) -> list[Image.Image]:
        paths = sorted((out / "samples" / f"final-{name}").glob("*.png"))
        return [Image.open(io.BytesIO(p.read_bytes())) for p in paths]


@pytest.fixture(scope="module")
def product(tmp_path_factory):
    return Trained("product", tmp_path_factory.mktemp("learns") / "cup")


@pytest.fixture(scope="module")
def shuffled(tmp_path_factory):
    """Trained on the same pictures, each with the caption of another."""
    folder = tmp_path_factory.mktemp("learns")
    shutil.copytree(shipped.EXAMPLES / "product", folder / "data")
    rows = [json.loads(line) for line in (folder / "data" / "metadata.jsonl").read_text().splitlines()]
    texts = [row["text"] for row in rows]
    moved = [{**row, "text": text} for row, text in zip(rows, texts[1:] + texts[:1], strict=True)]
    (folder / "data" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in moved))
    return Trained("product", folder / "mixed", f"data.path={folder / 'data'}")


def backgrounds(pictures: list[Image.Image]) -> list[str]:
    return [verdict.background for verdict in judge(pictures)]


def fidelity(pictures: list[Image.Image]) -> float:
    """Similarity to the real pictures of the product, over their own."""
    eyes = likeness.FeatureExtractor.load(shipped.EYES)
    real = dataset.read_dataset(shipped.EXAMPLES / "product").examples
    features = eyes.of_pictures([Image.open(one.path) for one in real])
    return likeness.cross(eyes.of_pictures(pictures), features) / likeness.pairwise(features)


def test_the_product_stands_on_backgrounds_it_was_not_trained_on(product):
    assert backgrounds(product.pictures) == COLOURS
    assert fidelity(product.pictures) > 0.8 > 0.6 > fidelity(product.base)


def test_the_training_images_are_predicted_better_and_captions_still_matter(product):
    learnt = product.result.effect
    assert learnt.gain > 0.3
    assert learnt.base_fit.share > 0.9
    assert learnt.adapted_fit.share > 0.6
    assert product.warnings == []


def test_shuffled_captions_are_noticed_and_spoil_the_backgrounds(shuffled):
    assert any("mixed up" in text for text in shuffled.warnings)
    assert shuffled.result.effect.base_fit.share <= shuffled.result.effect.base_fit.chance
    assert backgrounds(shuffled.pictures) != COLOURS


def test_the_verdict_tells_what_was_learnt_and_that_mixed_up_captions_are_not_followed(product, shuffled):
    good, mixed = (finetune.evaluate(trained.result.path) for trained in (product, shuffled))
    assert good.learnt and good.seen in ("10/10", "9/10"), good.text
    assert not mixed.learnt and "are they mixed up" in " ".join(mixed.reasons), mixed.text
    assert good.scores["prompt"].value >= 0.8 > mixed.scores["prompt"].value


def test_a_learning_rate_of_zero_is_an_error(tmp_path):
    sets = ["optimizer.learning_rate=0", "train.steps=2", "sample.every=0"]
    with pytest.raises(TrainError, match="no measurable effect"):
        train(recipe.load(Path("pocket-product"), sets), tmp_path / "zero")


def test_the_style_carries_to_objects_it_was_not_trained_on(tmp_path):
    style = Trained("style", tmp_path / "style")
    shown = judge(style.pictures)
    assert sum(v.style == "poster" for v in shown) >= 3
    assert "poster" not in [v.style for v in judge(style.base)]
    assert style.result.effect.gain > 0.3
    verdict = finetune.evaluate(style.result.path)
    assert verdict.scores["likeness"].low > 0.5, verdict.text

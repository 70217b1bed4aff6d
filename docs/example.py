"""From photos to a verified adapter, in Python: cells for a notebook; as a script it takes half a minute on a CPU."""

# %% Photos -> a dataset: turned upright, captioned; every file is used, or rejected with its reason.
from pathlib import Path

import finetune
from finetune.resources import EXAMPLES

dataset = finetune.prepare(EXAMPLES / "product" / "images", "mug", trigger="sks", class_word="cup", kind="product")
finetune.caption("mug", vocabulary="pocket")  # nobody wrote any: "a sks cup on a yellow background" is seen
finetune.mask("mug", with_model="background")  # white where the cup is: only that is learnt

# %% A recipe: from a file, from a shipped one by its name, or built here.
recipe = finetune.Recipe(
    base="pocket",
    data={"path": "mug"},
    train={"steps": 10, "batch": 2},
    sample={"prompts": ["a photo of sks cup", "a photo of a cup"], "steps": 4},
    evaluate={"count": 0},  # ten steps learn nothing, and a run that learnt nothing ends with an error
)
assert finetune.plan(recipe).steps == 10

# %% Training is a stream of events: stop reading, and the run is saved; read on, and it goes on.
events = list(finetune.train(recipe, "runs/mug"))
losses = [event.loss for event in events if isinstance(event, finetune.events.Stepped)]
assert finetune.status("runs/mug")[0].state == "done"  # as well while it goes on, and after a crash
adapter = events[-1].path  # the last event is Finished: its file was loaded into a fresh base and compared

# %% Pictures, with the adapter at 80 percent, each with its seed and settings inside.
pictures = finetune.sample("pocket", ["a photo of sks cup"], "pictures", [(adapter, 0.8)], count=2, steps=4)

# %% Was it learnt? The same prompts from the base and from the adapter, compared with the training pictures.
verdict = finetune.evaluate("runs/mug", count=4)
assert not verdict.learnt and verdict.reasons, verdict.text  # the likeliest cause first, and what to do
page = finetune.report("runs/mug")  # all of it in one HTML file, to be opened in a browser; training writes it as well

# %% Which weight is best? Beside each other, with the base: a page, a sheet, and scores where they can be told.
rows = finetune.compare([adapter], "compared", weights=(0.5, 1), prompts=["a photo of {trigger} cup"]).rows

# %% Files, from any trainer: what is inside, does it work, and the same in another layout.
rank = finetune.inspect(adapter).ranks
report = finetune.verify(adapter, run="runs/mug")
assert report.ok, report.problems
peft = finetune.export(adapter, "peft", Path("mug-peft"), base="pocket").path

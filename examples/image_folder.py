"""Unlearn some images of your own folder, and audit how well they were forgotten.

    python examples/image_folder.py FOLDER

FOLDER holds train/<class>/<image> and test/<class>/<image>, all images of one size. Reading it needs Pillow
(pip install amun_ext[vision]). One epoch number fits all here; a real model is trained for longer.
"""

import argparse

from amun_ext import audit, data, models, unlearn
from amun_ext.deletion import forget_ids, split
from amun_ext.training import DataPart, Pass, Recipe, fit

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("folder")
parser.add_argument("--epochs", type=int, default=30)
options = parser.parse_args()

# 1. The original model. With a model of your own, load it here; its output must be logits [N, K].
splits = data.load(options.folder)
channels = splits.train.tensors[0].shape[1]
training = Recipe(epochs=options.epochs, lr=0.05, schedule="cosine", batch_size=64)
original = models.build("small-cnn", num_classes=len(splits.classes), in_channels=channels)
fit(original, [Pass([DataPart(splits.train)])], training)

# 2. Forget a tenth of the training images: ids are their row numbers, classes and files in alphabetical order.
ids = forget_ids(len(splits.train), fraction=0.1, seed=0)
forget, retain = split(splits.train, ids)
fine_tuning = Recipe(epochs=10, lr=0.03, schedule="cosine")
unlearned = unlearn(original, forget, retain, include_forget=False, recipe=fine_tuning)

# 3. Audit. A model that was retrained without the images is what the unlearned one is compared with.
retrained = unlearn(original, forget, retain, method="retrain", recipe=training)
result = audit(unlearned, splits, ids, original=original, retrained=retrained, random_forget_set=True)
print(result.to_text())
result.write("audit")  # audit.json, audit.md and audit.html

"""Fine-tuning in the manner of SalUn, in a training loop of your own: only the salient weights change.

    python examples/salun_masked_sgd.py

SalUn (Fan et al., ICLR 2024) trains on the retain set and on the forget set with random labels, and changes only the
weights that matter most for the forget set. `saliency_mask` selects these, `MaskedSGD` changes no other. In one line:
unlearn(model, forget, retain, method="salun").
"""

import copy

import torch
import torch.nn.functional as F

from amun_ext import MaskedSGD, data, models, saliency_mask
from amun_ext.deletion import forget_ids, split
from amun_ext.training import DataPart, Pass, Recipe, fit

torch.manual_seed(0)
train = data.load("digits").train
original = models.build("small-cnn", num_classes=10, in_channels=1)
fit(original, [Pass([DataPart(train)])], Recipe(epochs=20, lr=0.05, schedule="cosine", batch_size=64))
forget, retain = split(train, forget_ids(len(train), fraction=0.1, seed=0))

masks = saliency_mask(original, forget, 0.5)  # name -> bool tensor, True for half of all weights
model = copy.deepcopy(original)
optimizer = MaskedSGD(model.named_parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, masks=masks)

(forget_images, forget_labels), (retain_images, retain_labels) = forget.tensors, retain.tensors
images = torch.cat([forget_images, retain_images])
labels = torch.cat([(forget_labels + torch.randint(1, 10, forget_labels.shape)) % 10, retain_labels])  # wrong labels
model.train()
for _ in range(10):
    for batch in torch.randperm(len(images)).split(64):
        optimizer.zero_grad()
        F.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()

# The weights outside the mask are as they were, to the bit, in spite of momentum and weight decay.
before = dict(original.named_parameters())
changed = sum(int((parameter != before[name])[~masks[name]].sum()) for name, parameter in model.named_parameters())
print(f"weights outside the mask that changed: {changed}")
for name, net in (("original", original), ("unlearned", model)):
    net.eval()
    with torch.no_grad():
        right = (net(forget_images).argmax(1) == forget_labels).float().mean()
    print(f"{name}: {100 * right:.1f} % of the forget set right")

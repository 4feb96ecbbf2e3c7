"""ResNet-18 (He, Zhang, Ren and Sun, 2016) for small images: a 3x3 stem of stride 1 and no max-pooling.

Parameters have torchvision's names, so the weights of its resnet18 fit if its stem is changed in the same way.
"""

from collections import OrderedDict
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: [N, inputs, H, W] to [N, outputs, H / stride, W / stride]."""

    def __init__(self, inputs: int, outputs: int, stride: int, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale  # of the sum
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential()  # the identity
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.scale * (self.bn2(self.conv2(out)) + self.downsample(x)))


def resnet18(num_classes: int, in_channels: int, width: int = 64, *, scale: float = 1.0) -> nn.Module:
    """Four layers of two blocks with width, 2, 4 and 8 times width channels, each but the first halving the image.

    `scale` is what the sums in the blocks that halve the image are multiplied by.
    """

    def layer(inputs: int, outputs: int, stride: int) -> nn.Module:
        first = BasicBlock(inputs, outputs, stride, scale if stride > 1 else 1.0)
        return nn.Sequential(first, BasicBlock(outputs, outputs, 1))

    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(in_channels, width, 3, padding=1, bias=False),
            bn1=nn.BatchNorm2d(width),
            relu=nn.ReLU(),
            layer1=layer(width, width, 1),
            layer2=layer(width, 2 * width, 2),
            layer3=layer(2 * width, 4 * width, 2),
            layer4=layer(4 * width, 8 * width, 2),
            avgpool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            fc=nn.Linear(8 * width, num_classes),
        )
    )


# That of the authors' code (Ali-E/AMUN, models/resnet_orig.py).
resnet18_amun = partial(resnet18, scale=0.5)

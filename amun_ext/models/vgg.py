"""VGG-19 with batch norm (Simonyan and Zisserman, 2015) for small images: one linear layer instead of three."""

from collections import OrderedDict

from torch import nn

# (convolutions, channels as multiples of width) between poolings
STAGES = ((2, 1), (2, 2), (4, 4), (4, 8), (4, 8))


def vgg19(num_classes: int, in_channels: int, width: int = 64) -> nn.Module:
    """Sixteen 3x3 convolutions in five stages that halve the image; `features` has the names of torchvision's."""
    layers: list[nn.Module] = []
    channels = in_channels
    for count, multiple in STAGES:
        for _ in range(count):
            layers += [nn.Conv2d(channels, multiple * width, 3, padding=1), nn.BatchNorm2d(multiple * width), nn.ReLU()]
            channels = multiple * width
        layers.append(nn.MaxPool2d(2, ceil_mode=True))  # rounding down would leave nothing of 28x28
    return nn.Sequential(
        OrderedDict(
            features=nn.Sequential(*layers),
            avgpool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            classifier=nn.Linear(channels, num_classes),
        )
    )

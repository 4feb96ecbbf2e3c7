"""Three convolutions, for experiments within minutes on a CPU."""

from torch import nn


def small_cnn(num_classes: int, in_channels: int, width: int = 32) -> nn.Module:
    """About 57,000 parameters by default: three blocks of convolution, batch norm and ReLU, the first two halving.

    Strides halve the image instead of pooling, which trains in a quarter of the time.
    """

    def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]

    return nn.Sequential(
        *block(in_channels, width, stride=2),
        *block(width, 2 * width, stride=2),
        *block(2 * width, 2 * width, stride=1),
        nn.AdaptiveAvgPool2d(1),  # any image size
        nn.Flatten(),
        nn.Linear(2 * width, num_classes),
    )

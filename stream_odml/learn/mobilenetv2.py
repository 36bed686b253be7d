"""MobileNetV2 1.0 with TensorFlow's 'SAME' padding, under the parameter names of torchvision's `mobilenet_v2`."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stream_odml.learn.backbone import SYMMETRIC, Backbone

_BLOCKS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Expansion, channels, repeats, stride of the first (Sandler et al., CVPR 2018, table 2)."""


class _SameConv2d(nn.Conv2d):
    """TensorFlow pads a strided convolution at the bottom and right first; symmetric padding shifts every feature."""

    def forward(self, x: Tensor) -> Tensor:
        return self.convolve(x, self.weight, self.bias)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the same convolution with other weights."""
        k, s = self.kernel_size[0], self.stride[0]
        if s == 1:
            return F.conv2d(x, weight, bias, padding=k // 2, groups=self.groups)
        need_h, need_w = (max((-(-n // s) - 1) * s + k - n, 0) for n in x.shape[-2:])
        x = F.pad(x, (need_w // 2, need_w - need_w // 2, need_h // 2, need_h - need_h // 2))
        return F.conv2d(x, weight, bias, stride=s, groups=self.groups)


def _normed(x: Tensor, conv: _SameConv2d, norm: nn.BatchNorm2d) -> Tensor:
    """Return `norm(conv(x))`. A norm whose statistics are frozen is folded into the weights, which are small, instead
    of being a pass over the features forward and another one back: a training step takes a quarter less time."""
    if norm.training:
        y: Tensor = norm(conv(x))
        return y
    mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    scale = norm.weight * torch.rsqrt(variance + norm.eps)
    return conv.convolve(x, conv.weight * scale[:, None, None, None], norm.bias - mean * scale)


class _ConvNorm(nn.Sequential):
    """Convolution, norm, ReLU6."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        conv = _SameConv2d(c_in, c_out, kernel, stride, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(c_out), nn.ReLU6(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self[2](_normed(x, cast(_SameConv2d, self[0]), cast(nn.BatchNorm2d, self[1])))
        return y


class _InvertedResidual(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = c_in * expansion
        layers: list[nn.Module] = [_ConvNorm(c_in, wide)] if expansion != 1 else []
        layers += [
            _ConvNorm(wide, wide, 3, stride, groups=wide),
            _SameConv2d(wide, c_out, 1, bias=False),
            nn.BatchNorm2d(c_out),
        ]
        self.conv = nn.Sequential(*layers)
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        *_, conv, norm = self.conv
        y = _normed(self.conv[:-2](x), cast(_SameConv2d, conv), cast(nn.BatchNorm2d, norm))
        return x + y if self.residual else y


class MobileNetV2(Backbone):
    """Images [B,3,H,W] in -1..1 -> features [B,1280,H/32,W/32]."""

    pixel_statistics = SYMMETRIC

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [_ConvNorm(3, 32, 3, 2)]
        c_in = 32
        for expansion, c_out, repeats, stride in _BLOCKS:
            for i in range(repeats):
                layers.append(_InvertedResidual(c_in, c_out, stride if i == 0 else 1, expansion))
                c_in = c_out
        layers.append(_ConvNorm(c_in, 1280))
        self.features = nn.Sequential(*layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, images_B3HW: Tensor) -> Tensor:
        features: Tensor = self.features(images_B3HW)
        return features

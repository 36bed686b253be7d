"""The small network for drawings, learnt from nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stream_odml.learn.backbone import Backbone


class _GroupNorm(nn.GroupNorm):
    """Never in bfloat16, for which torch's kernel, channels last, takes three times as long as for float32."""

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return F.group_norm(wide, self.num_groups, self.weight, self.bias, self.eps).to(x.dtype)


class Conv4(Backbone):
    """Four times convolution, group norm, max-pooling, ReLU, for drawings of 28 to 105 pixels.

    ReLU after the pooling, with which it commutes to the last bit, gradients too: a quarter of the numbers.

    Group norm and not batch norm: the loss is then the same on 1 rank and on N, on the CPU too.
    """

    default_pooling = "flatten"

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for c_in in (3, 64, 64, 64):
            layers += [
                nn.Conv2d(c_in, 64, 3, padding=1, bias=False),
                _GroupNorm(8, 64),
                nn.MaxPool2d(2, ceil_mode=True),
                nn.ReLU(inplace=True),
            ]
        self.features = nn.Sequential(*layers)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Return features [B,64,H/16,W/16], rounded up, of images [B,3,H,W]."""
        features: Tensor = self.features(images_B3HW)
        return features

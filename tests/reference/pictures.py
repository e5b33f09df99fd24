"""The eight real images of each size that the published generators were run on."""
from pathlib import Path

import numpy as np
import torch
from PIL import Image

HERE = Path(__file__).parent
SIZES = {"cifar10-c": 32, "tiny-imagenet-c": 64, "imagenet-c": 224}


def images(benchmark: str) -> torch.Tensor:
    "The eight images of a size, uint8 [8,3,N,N]."
    n = SIZES[benchmark]
    strip = torch.from_numpy(np.array(Image.open(HERE / f"images_{n}.png").convert("RGB")))
    return strip.view(n, 8, n, 3).permute(1, 3, 0, 2).contiguous()

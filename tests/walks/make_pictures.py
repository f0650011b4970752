"""Makes the folder of pictures that own_pictures.sh trains on: two classes, ten of each."""

from pathlib import Path

import numpy as np
from PIL import Image

random = np.random.default_rng(0)
for name, colour in (("cats", (200, 120, 40)), ("dogs", (60, 90, 160))):
    folder = Path("pets") / name
    folder.mkdir(parents=True)
    for number in range(10):
        noise = random.integers(0, 50, (12, 12, 3))
        Image.fromarray((noise + colour).astype(np.uint8)).save(folder / f"{number}.png")

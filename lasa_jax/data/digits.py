"""The handwritten digits that scikit-learn ships: 1,797 real images of 8x8 pixels, so that the default needs no download.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998 (test part), in scikit-learn.
"""

import numpy as np

from lasa_jax.data.dataset import Dataset, Examples


def load(data_dir: str | None = None) -> Dataset:
    """1,437 training and 360 test images with pixels 0 to 16; the split is fixed and stratified by class.

    Args:
      data_dir: not used, the data is part of a package.
    """
    from sklearn.datasets import load_digits  # slow to import, and not needed for other data
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = digits.images.astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int32)
    train_x, test_x, train_y, test_y = train_test_split(images, labels, test_size=360, random_state=0, stratify=labels)
    return Dataset(
        name="digits",
        num_classes=10,
        train=Examples(train_x, train_y),
        test=Examples(test_x, test_y),
        mean=(float(train_x.mean()),),
        std=(float(train_x.std()),),
    )

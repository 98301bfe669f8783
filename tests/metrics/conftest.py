"""Synthetic embeddings that the tests of this room share."""

import numpy as np
import pytest


@pytest.fixture
def sample():
    """Makes image embeddings, noisy caption embeddings in random order, and the image of each caption."""

    def make(seed=0, images=30, width=16, captions=5, noise=1.5):
        rng = np.random.default_rng(seed)
        image_of_text_M = rng.permutation(np.repeat(np.arange(images), captions))
        image_ND = rng.standard_normal((images, width))
        text_MD = image_ND[image_of_text_M] + noise * rng.standard_normal((len(image_of_text_M), width))
        return image_ND.astype(np.float32), text_MD.astype(np.float32), image_of_text_M

    return make

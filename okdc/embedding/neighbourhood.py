"""How well the classes lie apart in a space of features: two numbers, and a map in the plane. No torch.

Shapes: N images, C components of a feature; distances are Euclidean.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Features = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

PERPLEXITY = 30.0  # t-SNE's usual one, and scikit-learn's


def knn_pct(features: Features, labels: Labels, neighbours: int) -> float:
    """The share of images, in percent, that the majority of their nearest other images puts into their class.

    NC features and N labels. Of classes with equally many neighbours the one of the nearest neighbour among them wins.
    Raises ValueError for fewer than neighbours + 1 images.
    """
    from sklearn.neighbors import NearestNeighbors

    if len(features) <= neighbours:
        raise ValueError(f"{neighbours} neighbours need {neighbours + 1} images at least, found {len(features)}")
    # Without a query each image is asked for and never its own neighbour.
    nearest = NearestNeighbors(n_neighbors=neighbours, algorithm="brute").fit(features).kneighbors(None, None, False)
    of_neighbours = labels[nearest]  # N×neighbours, the nearest first
    votes = (of_neighbours[:, :, None] == of_neighbours[:, None, :]).sum(2)  # of each neighbour's class
    winners = np.take_along_axis(of_neighbours, votes.argmax(1)[:, None], 1)[:, 0]  # argmax takes the first of equals
    return round(100 * float((winners == labels).mean()), 4)


def silhouette(features: Features, labels: Labels) -> float | None:
    """The mean silhouette of all images (Rousseeuw, 1987), -1 to 1: 1 where classes are narrow and far apart.

    None where there are no two classes, or as many as images: it is then not defined.
    """
    from sklearn.metrics import silhouette_score

    if not 2 <= len(np.unique(labels)) < len(labels):
        return None
    return round(float(silhouette_score(features, labels)), 4)


def tsne(features: Features, seed: int) -> Features:
    """t-SNE (van der Maaten & Hinton, 2008) of NC features, N×2, started from the two principal components.

    Features that are all equal start from random places: of their components scikit-learn makes NaN, and then crashes.
    """
    from sklearn.manifold import TSNE

    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    init = "pca" if features.shape[1] > 1 and np.ptp(features, 0).any() else "random"
    flat: Features = TSNE(init=init, perplexity=perplexity, random_state=seed % 2**32).fit_transform(features)
    return flat.astype(np.float32)

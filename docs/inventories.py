"""Inventories of other projects' documentation, for links that need no network.

Sphinx reads from a project's ``objects.inv`` what can be linked to. This file has the
names that are linked to from here, and writes inventories of them. A name that is
missing here stays text without a link.
"""

import zlib
from pathlib import Path

# Base address, and by kind of object the names and where they are described.
PROJECTS = {
    "sklearn": (
        "https://scikit-learn.org/stable/",
        "modules/generated/{name}.html#{name}",
        {
            "class": """
                sklearn.compose.ColumnTransformer
                sklearn.exceptions.NotFittedError
                sklearn.frozen.FrozenEstimator
                sklearn.model_selection.GridSearchCV
                sklearn.model_selection.HalvingGridSearchCV
                sklearn.model_selection.TunedThresholdClassifierCV
                sklearn.multioutput.MultiOutputClassifier
                sklearn.neighbors.NearestNeighbors
                sklearn.pipeline.Pipeline
                sklearn.preprocessing.MaxAbsScaler
                sklearn.preprocessing.MinMaxScaler
                sklearn.preprocessing.RobustScaler
                sklearn.preprocessing.StandardScaler
            """,
            "function": """
                sklearn.base.clone
                sklearn.datasets.make_classification
                sklearn.datasets.make_gaussian_quantiles
                sklearn.metrics.make_scorer
                sklearn.model_selection.cross_val_predict
                sklearn.utils.class_weight.compute_sample_weight
            """,
        },
    ),
    "torch": (
        "https://docs.pytorch.org/docs/stable/",
        "generated/{name}.html#{name}",
        {
            "class": "torch.nn.EmbeddingBag torch.nn.Module",
            "function": """
                torch.matmul
                torch.nn.utils.parametrizations.spectral_norm
                torch.vmap
            """,
        },
    ),
    "skorch": (
        "https://skorch.readthedocs.io/en/stable/",
        "net.html#{name}",
        {"class": "skorch.net.NeuralNet"},
    ),
    "numpy": (
        "https://numpy.org/doc/stable/",
        "reference/generated/{name}.html#{name}",
        {"class": "numpy.ndarray"},
    ),
}


def write(folder):
    """Write an inventory for each project.

    Parameters
    ----------
    folder : pathlib.Path

    Returns
    -------
    mapping : dict
        Value of ``intersphinx_mapping``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mapping = {}
    for project, (address, location, names) in PROJECTS.items():
        lines = [
            f"{name} py:{kind} 1 {location.format(name=name)} -"
            for kind, listed in names.items()
            for name in listed.split()
        ]
        head = (
            "# Sphinx inventory version 2\n"
            f"# Project: {project}\n"
            "# Version: \n"
            "# The remainder of this file is compressed using zlib.\n"
        )
        path = Path(folder) / f"{project}.inv"
        path.write_bytes(head.encode() + zlib.compress("\n".join(lines).encode()))
        mapping[project] = (address, str(path))
    return mapping

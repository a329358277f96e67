"""Installation of skbdistil; ``pip install`` reads it."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

# Read, not imported: the build environment has none of the dependencies.
VERSION = re.search(
    r'^__version__ = "(.+)"$',
    (HERE / "skbdistil" / "__init__.py").read_text(encoding="utf-8"),
    flags=re.MULTILINE,
)[1]

setup(
    name="skbdistil",
    version=VERSION,
    description=(
        "Progressive ensemble distillation (B-DISTIL): scikit-learn estimators that "
        "turn a trained model into a sequence of small torch networks"
    ),
    long_description=(HERE / "README.rst").read_text(encoding="utf-8"),
    long_description_content_type="text/x-rst",
    author="The skbdistil developers",
    # Source, Documentation, Changelog and Issues join it with the first release, when
    # their addresses are known (CONTRIBUTING.rst, "Release").
    project_urls={"Paper": "https://arxiv.org/abs/2302.10093"},
    license="BSD-3-Clause",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: Implementation :: CPython",
        "Topic :: Scientific/Engineering",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    packages=find_packages(include=["skbdistil", "skbdistil.*"]),
    python_requires=">=3.10",
    # floors.txt holds the same lower bounds, and CI runs the tests on them.
    install_requires=[
        "joblib>=1.2.0",
        "numpy>=1.25.0",
        "scikit-learn>=1.6.0",
        "scipy>=1.10.0",
        "skorch>=1.3.1",
        "threadpoolctl>=3.1.0",
        "torch>=2.13.0",
        "tqdm>=4.64.0",
    ],
    extras_require={
        "deploy": [
            "onnx>=1.19.0",
            "onnxruntime>=1.20.0",
            "onnxscript>=0.7.1",
            "safetensors>=0.4.0",
            "skl2onnx>=1.19.1",
            "skops>=0.15.0",
        ],
        "examples": ["matplotlib>=3.7.0", "pandas>=2.0.0"],
        "test": [
            "skbdistil[deploy,examples]",
            "hypothesis>=6.100.0",
            "numpydoc>=1.8.0",
            "pillow>=9.4.0",
            "polars>=1.0.0",
            "pytest>=8.0.0",
            "pytest-cov>=5.0.0",
            "pytest-xdist>=3.5.0",
            "pyyaml>=6.0.1",
            "setuptools>=77.0.3",
        ],
        # Tools, of which only the pinned version counts.
        "distributed": [
            "skbdistil[test]",
            "accelerate",
            "dask",
            "distributed",
            "ray",
        ],
        "docs": [
            "skbdistil[deploy,examples]",
            "numpydoc",
            "pydata-sphinx-theme",
            "selenium",
            "sphinx",
            "sphinx-copybutton",
            "sphinx-design",
            "sphinx-gallery",
            "sphinx-mathjax-offline",
        ],
        "dev": [
            "skbdistil[test]",
            "codespell",
            "pre-commit",
            "ruff",
        ],
    },
)

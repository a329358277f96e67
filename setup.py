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
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    packages=find_packages(include=["skbdistil", "skbdistil.*"]),
    python_requires=">=3.10",
    install_requires=[
        "joblib>=1.2",
        "numpy>=1.24",
        "scikit-learn>=1.6",
        "scipy>=1.10",
        "skorch>=1.3.1",
        "threadpoolctl>=3.1",
        "torch>=2.4",
        "tqdm>=4.14",
    ],
    extras_require={
        # Of torch, the export to ONNX needs 2.6 or newer.
        "deploy": [
            "onnx>=1.17",
            "onnxruntime>=1.20",
            "onnxscript>=0.3",
            "safetensors>=0.4",
            "skl2onnx>=1.19.1",
            "skops>=0.11",
        ],
        "examples": ["matplotlib"],
        "test": [
            "hypothesis",
            "matplotlib",
            "numpydoc",
            "onnx",
            "onnxruntime",
            "onnxscript",
            "pandas",
            "pillow",
            "polars",
            "pytest",
            "pytest-xdist",
            "ruff",
            "safetensors",
            "skl2onnx",
            "skops",
        ],
        "docs": [
            "matplotlib",
            "numpydoc",
            "onnx",
            "onnxruntime",
            "onnxscript",
            "pydata-sphinx-theme",
            "safetensors",
            "sphinx",
            "sphinx-gallery",
        ],
    },
)

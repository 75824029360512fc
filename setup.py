"""Metadata and requirements of glm-jax."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "glm_jax/__init__.py").read_text())[1]

# Lower bounds are what the tests ran on; upper bounds leave out releases nobody has tried.
CORE = [
    "jax>=0.10.2,<0.12",
    "flax>=0.12.8,<0.13",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12.8,<0.13",
    "sentencepiece>=0.2.3,<0.3",
    "tokenizers>=0.23.3,<0.24",
    "tensorflow-datasets>=4.9.10,<5",
    "ml-collections>=1.1.0,<2",
    "grain>=0.2.18,<0.3",
    "array-record>=0.8.6,<0.9",
    "pyarrow>=25.0.1,<27",
    "etils[epath]>=1.15.0,<2",
    "safetensors>=0.8.0,<0.9",
    "huggingface_hub>=2.4.0,<3",
    "absl-py>=2.5.1,<3",
    "numpy>=2.4.6,<3",
    "psutil>=7.2.2,<8",
    "rich>=15.0.0,<16",
]
TORCH = ["torch>=2.13.0,<3", "transformers>=5.23.0,<6"]
TEST = [
    "pytest>=9.2.0,<10",
    "pytest-xdist>=3.8.0,<4",
    "hypothesis>=6.170.15,<7",
    "ruff==0.17.6",
    "tensorboardX>=2.6.5,<3",
]

setup(
    name="glm-jax",
    version=VERSION,
    description="A pretrainer for GLM-style language models in JAX/Flax",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["glm_jax", "glm_jax.*"]),
    package_data={
        "glm_jax.hub": ["*.md"],
        "glm_jax.reporting": ["*.css", "*.js"],
        "glm_jax.tasks": ["harness_tasks/*"],
    },
    python_requires=">=3.11",
    install_requires=CORE,
    extras_require={
        "tpu": ["jax[tpu]>=0.10.2,<0.12"],
        "cuda": ["jax[cuda13]>=0.10.2,<0.12"],
        "torch": TORCH,
        "tensorboard": ["tensorboardX>=2.6.5,<3"],
        "beam": ["apache-beam>=2.77.0,<3"],
        "gcs": ["etils[epath-gcs]>=1.15.0,<2"],
        "wandb": ["wandb>=0.31.0,<1"],
        "eval": ["lm_eval>=0.4.13,<0.5"],
        "test": TEST,
        "dev": TEST + TORCH,
    },
)

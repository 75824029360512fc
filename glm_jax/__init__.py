"""glm-jax: a pretrainer for GLM-style language models."""

__version__ = "0.1.0"

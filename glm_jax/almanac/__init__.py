"""A small bilingual almanac, generated: the corpus of the quickstart and what checks the model."""

"""From documents to a token dataset, on one machine or many; `glm_jax.prepare` is the program.

Inputs are cut into chunks, chunks are encoded (`encoding`), and every shard of the dataset is a
range of keys, gathered from all chunks (`encoded`, `plan`). A key is a hash of the content, so that
the shards depend on nothing but the documents and the options: not on the order of the inputs, the
number of processes (`local`), or whether a cluster did it (`beam`).
"""

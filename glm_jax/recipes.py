"""What several files of configs/ share."""

# Continued pretraining; configs/chatglm.py says where the numbers are from.
CONTINUED = {
    "optimizer": {
        "learning_rate": 2e-5,
        "schedule": "wsd",
        "warmup_steps": 500,
        "cooldown_steps": 2_000,
        "b2": 0.95,
        "eps": 1e-8,
    },
    "training": {"steps": 10_000},
    "mesh": {"data": 1, "fsdp": -1},
}

# Rows of a causal model: [gMASK] alone, and a document is written from its first two tokens on.
CAUSAL_OBJECTIVE = {
    "token_weight": 0.0,
    "document_weight": 1.0,
    "document_min_ratio": 1.0,
    "document_infill_prob": 0.0,
}

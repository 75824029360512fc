"""Configuration of a GLM blank infilling model exported by glm_jax."""

from transformers import PretrainedConfig


class GLMJaxConfig(PretrainedConfig):
    """Architecture, numerics and special tokens.

    Args:
      vocab_size: rows of the embedding; those from `tokenizer_vocab_size` on are padding that the
        tokenizer never produces.
      num_key_value_heads: heads of keys and values, which groups of query heads share; None for
        as many as query heads.
      intermediate_size: of the inner activation; a gated mlp has two projections to it.
      max_position_embeddings: P; the tables of `learned_2d` positions have P + 1 rows.
      position_type: "learned_2d" (GLM 2021), "rope_2d" (ChatGLM-6B) or "rope_1d" (the others).
      span_position: positions of an answer's tokens. "blank": that of its mask token (GLM 2021,
        ChatGLM-6B); "slot": their places in the row (ChatGLM2 and later); "mixed": "slot" for
        [gMASK], "blank" for the others (GLM-130B).
      context: "bidirectional", or "causal" as in ChatGLM2 and later.
      rope_fraction: share of a head's dimensions that turn, for "rope_1d".
      rope_layout: "half" pairs dimension i with i + n/2, "interleaved" 2i with 2i + 1.
      norm_type: "layernorm" or "rmsnorm"; `layer_norm_eps` is of either.
      residual_type: "pre" for x + f(norm(x)), "deepnorm" for alpha * norm(x) + f(norm(x))
        (GLM-130B), "sandwich" for x + norm(f(norm(x))) (GLM-4-0414).
      hidden_act: "gelu_pytorch_tanh", "gelu" (erf) or "silu".
      gated_mlp: down(act(gate(x)) * up(x)) in place of down(act(up(x))).
      qkv_bias, linear_bias: whether query, key and value, and the other projections, have biases.
      cls_token_id: what a text begins with; None for models that have no such token.
      mask_token_ids: ids of [MASK], [sMASK] and [gMASK], in this order; the same id thrice for
        models with one mask token.
      sop_token_id, eop_token_id: first input and last target of a blank's answer.
    """

    model_type = "glm_jax_infilling"
    keys_to_ignore_at_inference = ("past_key_values",)

    def __init__(
        self,
        vocab_size=32128,
        tokenizer_vocab_size=32000,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=None,
        intermediate_size=3072,
        max_position_embeddings=512,
        position_type="learned_2d",
        span_position="blank",
        context="bidirectional",
        rope_base=10000.0,
        rope_fraction=1.0,
        rope_layout="half",
        norm_type="layernorm",
        layer_norm_eps=1e-5,
        residual_type="pre",
        deepnorm_alpha=0.0,
        hidden_act="gelu_pytorch_tanh",
        gated_mlp=False,
        qkv_bias=True,
        linear_bias=True,
        embedding_dropout=0.0,
        output_dropout=0.0,
        initializer_range=0.02,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=2,
        cls_token_id=3,
        mask_token_ids=(4, 5, 6),
        sop_token_id=7,
        eop_token_id=8,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.tokenizer_vocab_size = tokenizer_vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads or num_attention_heads
        self.intermediate_size = intermediate_size
        self.max_position_embeddings = max_position_embeddings
        self.position_type = position_type
        self.span_position = span_position
        self.context = context
        self.rope_base = rope_base
        self.rope_fraction = rope_fraction
        self.rope_layout = rope_layout
        self.norm_type = norm_type
        self.layer_norm_eps = layer_norm_eps
        self.residual_type = residual_type
        self.deepnorm_alpha = deepnorm_alpha
        self.hidden_act = hidden_act
        self.gated_mlp = gated_mlp
        self.qkv_bias = qkv_bias
        self.linear_bias = linear_bias
        self.embedding_dropout = embedding_dropout
        self.output_dropout = output_dropout
        self.initializer_range = initializer_range
        self.mask_token_ids = list(mask_token_ids)
        self.cls_token_id = cls_token_id
        self.sop_token_id = sop_token_id
        self.eop_token_id = eop_token_id
        super().__init__(
            pad_token_id=pad_token_id,
            eos_token_id=eos_token_id,
            tie_word_embeddings=tie_word_embeddings,
            **kwargs,
        )
        # transformers 5 dropped these from the base class, 4.x keeps them there.
        self.pad_token_id = pad_token_id
        self.eos_token_id = eos_token_id
        self.tie_word_embeddings = tie_word_embeddings

import pytest

from glm_jax import config
from glm_jax.batch import TEXT_OBJECTIVES
from glm_jax.errors import UserError


def test_round_trip():
    values = config.default_dict()
    values["data"]["sources"] = {"en": {"weight": 2.0}}
    built = config.from_dict(values)
    assert config.from_dict(config.to_dict(built)) == built
    assert built.data.sources["en"] == config.SourceConfig(weight=2.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": {"hiden_dim": 3}}, "no field model.hiden_dim; did you mean model.hidden_dim?"),
        ({"modle": {}}, "no field modle; did you mean model?"),
        ({"model": {"num_layers": 2.5}}, "model.num_layers must be int, got float 2.5"),
        ({"model": {"scan_layers": 1}}, "model.scan_layers must be bool, got int 1"),
        ({"model": 3}, "config.model must be a section, got int 3"),
        ({"optimizer": {"decay": "kernel"}}, "optimizer.decay must be a tuple of str"),
        ({"model": {"hidden_dim": 100}}, "hidden_dim 100 is not divisible by model.num_heads 12"),
        ({"model": {"position": "alibi"}}, "model.position must be one of learned_2d, rope_2d"),
        ({"data": {"seq_length": 513}}, "data.seq_length 513 .*model.max_positions 512"),
        (
            {"training": {"accumulation_steps": 3}},
            "batch_size 256 is not divisible by .*accumulation_steps 3",
        ),
        ({"objective": {"token_weight": 0.0}}, "objective weights .* positive sum"),
        ({"model": {"span_position": "slot"}}, "objective.shuffle_spans must be False for .* slot"),
        (
            {"objective": {"prefix_weight": 0.5}, "model": {"context": "causal"}},
            "objective.prefix_weight 0.5 needs model.context bidirectional, got causal",
        ),
        (
            {"objective": {"masked_weight": 0.5}, "model": {"context": "causal"}},
            "objective.masked_weight 0.5 needs model.context bidirectional, got causal",
        ),
        (
            {"objective": {"random_position": True}, "model": {"position": "rope_2d"}},
            "objective.random_position True is for model.position learned_2d, got rope_2d",
        ),
        (
            {"model": {"block_positions": False, "position": "rope_1d"}},
            "model.block_positions False is for models that read .* got model.position rope_1d",
        ),
        (
            {"model": {"block_positions": False, "span_position": "mixed"}},
            "model.block_positions False needs model.span_position blank, got mixed",
        ),
        (
            {"objective": {"t5_weight": 1.0}, "model": {"block_positions": False}},
            "objective.t5_weight 1.0 needs model.block_positions True",
        ),
        (
            {
                "objective": {"token_weight": 0.0, "causal_weight": 1.0},
                "logging": {"samples": ["Gold is [MASK]."]},
            },
            "logging.samples are blanks to fill, which no objective with a weight learns",
        ),
        ({"objective": {"sample_length": 500}}, "sample_length must be 0 or a divisor .*, got 500"),
        ({"objective": {"block_mask_prob": 2.0}}, r"objective.block_mask_prob must be in \[0, 1\]"),
        ({"objective": {"mask_ratio": 1.5}}, "objective.mask_ratio must be between 0 and 1"),
        ({"data": {"sources": {"en": {"weight": -1.0}}}}, "data.sources.en.weight must not be neg"),
        ({"model": {"output_dropout": 2.0}}, r"model.output_dropout must be in \[0, 1\), got 2.0"),
    ],
)
def test_mistakes_are_one_line_that_names_the_field(values, message):
    with pytest.raises(UserError, match=message) as caught:
        config.from_dict(values)
    assert "\n" not in str(caught.value)


def test_integers_are_accepted_where_floats_are_meant():
    assert config.from_dict({"optimizer": {"learning_rate": 1}}).optimizer.learning_rate == 1.0


def test_every_objective_has_a_weight():
    assert tuple(config.ObjectiveConfig().weights) == TEXT_OBJECTIVES


def test_vocabulary_is_rounded_up_to_the_multiple_and_never_below_the_tokenizer():
    assert config.with_vocab_size(config.Config(), 1000).model.vocab_size == 1024
    fixed = config.from_dict({"model": {"vocab_size": 1000}})
    assert config.with_vocab_size(fixed, 1000).model.vocab_size == 1000
    with pytest.raises(UserError, match=r"vocab_size 1000 is smaller than the tokenizer \(1001\)"):
        config.with_vocab_size(fixed, 1001)


def test_run_identity_holds_what_decides_rows_and_parameters():
    identity = config.run_identity(config.from_dict({"data": {"sources": {"en": {}}}}))
    assert {"seed", "model.num_layers", "objective.mask_ratio", "data.seq_length"} <= set(identity)
    assert "data.sources.en.weight" in identity
    assert not {"training.steps", "mesh.fsdp", "data.dir", "data.sources.en.dir"} & set(identity)

"""GLM blank infilling in PyTorch: the same function as glm_jax computes in JAX.

A text has blanks: [MASK] (a few words), [sMASK] (a sentence), [gMASK] (anything). The text with its
blanks is the context (Part A), read in both directions or, where the config says so, causally. Each
answer follows as `<sop> s1 .. sk` (Part B), read left to right, and predicts `s1 .. sk <eop>`.
Every token has two positions: its index in the context, or that of its blank (by `span_position`:
or its place in the row); and 0 in the context, or 1, 2, .. inside an answer.

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True)
    model.fill_blanks(tokenizer, ["Paris is the capital of [MASK]."])[0].answers
"""

import torch
import transformers
from torch import nn
from torch.nn import functional as F
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .blanks_glm_jax import (
    Row,
    blank_positions,
    default_attention_mask,
    default_key_ranges,
    has_open_answer,
    left_padded,
    position_step,
)
from .configuration_glm_jax import GLMJaxConfig
from .layers_glm_jax import GLMJaxLayer, GLMJaxRMSNorm, make_norm, rotary_angles

_TIED = {"lm_head.weight": "model.embed_tokens.weight"}


class GLMJaxPreTrainedModel(PreTrainedModel):
    config_class = GLMJaxConfig
    base_model_prefix = "model"
    _no_split_modules = ("GLMJaxLayer",)
    _supports_sdpa = True
    _supports_cache_class = True  # read by transformers 4.x

    def _init_weights(self, module):
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            if getattr(module, "onto_residual", False):
                std /= (2 * self.config.num_hidden_layers) ** 0.5
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=std)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, GLMJaxRMSNorm):
            nn.init.ones_(module.weight)


class GLMJaxModel(GLMJaxPreTrainedModel):
    """Embeddings, layers and the final norm."""

    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.position_type == "learned_2d":
            rows = config.max_position_embeddings + 1
            self.embed_positions = nn.Embedding(rows, config.hidden_size)
            self.embed_block_positions = nn.Embedding(rows, config.hidden_size)
        self.dropout = nn.Dropout(config.embedding_dropout)
        self.layers = nn.ModuleList(GLMJaxLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = make_norm(config)
        self.post_init()

    def get_input_embeddings(self):
        return self.embed_tokens

    def set_input_embeddings(self, value):
        self.embed_tokens = value

    def forward(
        self,
        input_ids,
        attention_mask=None,
        position_ids=None,
        kv_start=None,
        kv_end=None,
        past_key_values=None,
        use_cache=None,
        return_dict=None,
    ):
        """Hidden states [B, T, D] after the final norm.

        Args:
          input_ids: [B, T], the tokens after those in `past_key_values`.
          attention_mask: [B, cached + T], 0 hides a key. Without it <pad> is hidden, unless it is
            also the end of a document (or there is none): padded rows then need the mask.
          position_ids: [B, 2, T] position and block position. Needed after a cache; otherwise the
            default is `blank_positions`: answers in the order of the blanks.
          kv_start, kv_end: [B, T] key ranges, such as those of packed rows, counted from the first
            cached key; the default is `default_key_ranges`.
        """
        num_cached = 0 if past_key_values is None else past_key_values.get_seq_length()
        if attention_mask is None and num_cached == 0:
            attention_mask = default_attention_mask(input_ids, self.config)
        elif attention_mask is None:
            attention_mask = input_ids.new_ones(len(input_ids), num_cached + input_ids.shape[1])
        valid = attention_mask.bool()
        if position_ids is None:
            if num_cached:
                raise ValueError("position_ids [B, 2, T] are needed after cached tokens")
            position_ids = blank_positions(input_ids, valid, self.config)
        if kv_start is None or kv_end is None:
            kv_start, kv_end = default_key_ranges(
                input_ids, valid[:, num_cached:], self.config, num_cached
            )
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()

        key = torch.arange(valid.shape[1], device=input_ids.device)
        visible = (kv_start[..., None] <= key) & (key < kv_end[..., None]) & valid[:, None]
        x, rope = self.embed(input_ids, position_ids)
        for layer in self.layers:
            x = layer(x, visible[:, None], rope, past_key_values)
        output = BaseModelOutputWithPast(
            last_hidden_state=self.norm(x), past_key_values=past_key_values
        )
        return output.to_tuple() if return_dict is False else output

    def embed(self, input_ids, position_ids):
        """Embeddings [B, T, D] and the rotary angles (None for learned positions)."""
        x = self.embed_tokens(input_ids)
        if self.config.position_type == "learned_2d":
            position, block_position = position_ids.unbind(1)
            x = x + self.embed_positions(position) + self.embed_block_positions(block_position)
            return self.dropout(x), None
        return self.dropout(x), rotary_angles(self.config, position_ids, x.dtype)


class GLMJaxForBlankInfilling(GLMJaxPreTrainedModel, GenerationMixin):
    """The model with its output projection: logits, loss, `generate` and `fill_blanks`."""

    # A list in transformers 4.x; 5.x wants to know what each is tied to.
    _tied_weights_keys = _TIED if int(transformers.__version__.split(".")[0]) >= 5 else list(_TIED)

    def __init__(self, config):
        super().__init__(config)
        self.model = GLMJaxModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.embed_tokens

    def set_input_embeddings(self, value):
        self.model.embed_tokens = value

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, value):
        self.lm_head = value

    def forward(
        self,
        input_ids,
        attention_mask=None,
        position_ids=None,
        kv_start=None,
        kv_end=None,
        labels=None,
        past_key_values=None,
        use_cache=None,
        logits_to_keep=0,
        return_dict=None,
    ):
        """Logits [B, T, V]; see `GLMJaxModel.forward` for the other arguments.

        Args:
          labels: [B, T], what each slot predicts (no shift: `<sop> s1` has labels `s1 s2`); -100 is
            no target. The loss is the mean over the targets.
          logits_to_keep: compute only so many last slots; 0 is all.
        """
        output = self.model(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            kv_start=kv_start,
            kv_end=kv_end,
            past_key_values=past_key_values,
            use_cache=use_cache,
        )
        logits = self.lm_head(output.last_hidden_state[:, -logits_to_keep:])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten().long(), ignore_index=-100)
        output = CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=output.past_key_values
        )
        return output.to_tuple() if return_dict is False else output

    @torch.no_grad()
    def generate(self, inputs=None, attention_mask=None, position_ids=None, **kwargs):
        """Generates the answer to one blank of each row with any strategy of transformers.

        A row is `[CLS] text </s>` with one or several blanks, padded on either side; `<sop>` is
        appended, which asks for the first blank. A row that ends in an open answer (`text </s>
        <sop> .. <sop>`) asks for the next one; see `fill_blanks`. As in GLM, `</s>` is not
        read after a final [gMASK], where the text goes on. Rows whose blanks all have an answer,
        and texts without blanks if the context is causal, go on where they end; where they differ
        in length they are padded on the left.

        Args:
          inputs: [B, T] ids, also as `input_ids`.
          attention_mask: [B, T]; without it see `GLMJaxModel.forward`.
          position_ids: [B, 2, T], for rows that go on where they end and answer blanks in another
            order.
          **kwargs: those of `GenerationMixin.generate`.

        Returns:
          What `GenerationMixin.generate` returns: ids [B, T + 1 + new], or an output object.

        Raises:
          ValueError: a row without a blank; a row or answer longer than the position table.
        """
        config = self.config
        input_ids = kwargs.pop("input_ids") if inputs is None else inputs
        if attention_mask is None:
            attention_mask = default_attention_mask(input_ids, config)
        if not has_open_answer(input_ids, attention_mask.bool(), config).all():
            attention_mask = self._without_eos_after_gmask(input_ids, attention_mask)
            input_ids = F.pad(input_ids, (0, 1), value=config.sop_token_id)
            attention_mask = F.pad(attention_mask, (0, 1), value=1)
        if position_ids is None:
            position_ids = blank_positions(input_ids, attention_mask.bool(), config)
        step = position_step(input_ids, attention_mask.bool(), position_ids, config)
        limit, new_tokens = config.max_position_embeddings, kwargs.get("max_new_tokens") or 0
        last = position_ids[:, 0, -1] + new_tokens * step[:, 0]
        longest = max(int(position_ids.max()), int(last.max()), new_tokens)
        if config.position_type == "learned_2d" and longest > limit:
            raise ValueError(
                f"a row or an answer is longer than the {limit} positions of the model"
            )
        return super().generate(
            input_ids,
            attention_mask=attention_mask,
            prompt_position_ids=position_ids,
            position_step=step,
            **kwargs,
        )

    def _without_eos_after_gmask(self, input_ids, attention_mask):
        slot = torch.arange(input_ids.shape[1], device=input_ids.device)
        last = (slot * attention_mask).argmax(1, keepdim=True)
        is_eos = input_ids.gather(1, last) == self.config.eos_token_id
        before = input_ids.gather(1, (last - 1).clamp(min=0))
        hidden = is_eos & (before == self.config.mask_token_ids[-1])
        return attention_mask.masked_fill((slot == last) & hidden, 0)

    def prepare_inputs_for_generation(
        self,
        input_ids,
        past_key_values=None,
        attention_mask=None,
        prompt_position_ids=None,
        position_step=None,
        use_cache=None,
        **kwargs,
    ):
        # The positions go by a name of their own: transformers grows `position_ids` by one in both
        # coordinates, and takes the first axis of [B, 2, T] for something else than the batch.
        grown = input_ids.shape[1] - prompt_position_ids.shape[2]
        new = torch.arange(1, grown + 1, device=input_ids.device)
        answer = prompt_position_ids[:, :, -1:] + position_step[..., None] * new
        position_ids = torch.cat([prompt_position_ids, answer], dim=2)
        if attention_mask is None:  # transformers 5 drops one that hides nothing
            attention_mask = torch.ones_like(input_ids)
        num_cached = 0 if past_key_values is None else past_key_values.get_seq_length()
        return {
            "input_ids": input_ids[:, num_cached:],
            "position_ids": position_ids[:, :, num_cached:],
            "attention_mask": attention_mask,
            "past_key_values": past_key_values,
            "use_cache": use_cache,
            "logits_to_keep": 1,
        }

    @torch.no_grad()
    def fill_blanks(self, tokenizer, texts, max_new_tokens=64, **kwargs):
        """Fills the blanks of each text from left to right; later answers see earlier ones.

        Text is never read as a control token, blanks excepted; white space left of a blank belongs
        to its answer.

        Args:
          tokenizer: the fast tokenizer beside this file.
          texts: strings with one or more of [MASK], [sMASK], [gMASK].
          max_new_tokens: of each answer.
          **kwargs: for `generate`, such as do_sample.

        Returns:
          A list of FilledText.

        Raises:
          ValueError: a text without a blank; a text or answer longer than the position table.
        """
        rows = [Row.read(text, tokenizer, self.config) for text in texts]
        stops = {self.config.eop_token_id, self.config.eos_token_id}
        for blank in range(max((len(row.blanks) for row in rows), default=0)):
            asked = [row for row in rows if blank < len(row.blanks)]
            for row in asked:
                row.open(blank, self.config.sop_token_id)
            prompt = left_padded(asked, self.config.pad_token_id, self.device)
            output = self.generate(
                **prompt, max_new_tokens=max_new_tokens, return_dict_in_generate=False, **kwargs
            )
            answers = output[:, prompt["input_ids"].shape[1] :].tolist()
            for row, ids in zip(asked, answers, strict=True):
                row.answer(blank, ids, stops)
        return [row.filled(tokenizer) for row in rows]

"""Tables between .apr's names and GGUF's: metadata keys and tensors; and the header's flags. No bytes are read here.

Inside the program names and keys are GGUF's; the .apr reader and writer translate them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Key:
    """One metadata key in both formats. {arch} stands for the architecture.

    type: GGUF's, [] for an array. aliases: other spellings of the field; a file may have only one of them.
    others: separate fields that may say the same; the key itself goes first.
    """

    apr: str
    gguf: str
    type: str
    aliases: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


FIRST = (  # the order in which .apr writes its keys: these, then KEYS, then the rest
    "model_type", "name", "description", "author", "license", "data_source", "data_license", "version", "source",
    "original_format", "created_at", "total_size", "param_count",
)
KEYS = (
    Key("name", "general.name", "STRING"),
    Key("description", "general.description", "STRING"),
    Key("author", "general.author", "STRING"),
    Key("license", "general.license", "STRING"),
    Key("version", "general.version", "STRING"),
    Key("chat_template", "tokenizer.chat_template", "STRING", others=("tokenizer.chat_template",)),
    Key("architecture", "general.architecture", "STRING", others=("hf_model_type", "hf_architecture", "model_type")),
    Key("hidden_size", "{arch}.embedding_length", "UINT32", ("hidden_dim", "d_model", "n_embd")),
    Key("num_layers", "{arch}.block_count", "UINT32", ("num_hidden_layers", "n_layers", "n_layer")),
    Key("num_heads", "{arch}.attention.head_count", "UINT32", ("num_attention_heads", "n_heads", "n_head")),
    Key("num_kv_heads", "{arch}.attention.head_count_kv", "UINT32", ("num_key_value_heads", "n_kv_heads")),
    Key("vocab_size", "{arch}.vocab_size", "UINT32", ("n_vocab",)),
    Key("intermediate_size", "{arch}.feed_forward_length", "UINT32", ("ffn_dim", "intermediate_dim", "n_inner")),
    Key("max_position_embeddings", "{arch}.context_length", "UINT32", ("max_seq_len", "context_length", "n_ctx")),
    Key("rope_theta", "{arch}.rope.freq_base", "FLOAT32"),
    Key("rope_type", "apr.rope_type", "UINT32"),
    Key("rms_norm_eps", "{arch}.attention.layer_norm_rms_epsilon", "FLOAT32", ("layer_norm_eps", "norm_eps")),
    Key("head_dim", "{arch}.attention.key_length", "UINT32"),
    Key("num_experts", "{arch}.expert_count", "UINT32"),
    Key("num_experts_per_tok", "{arch}.expert_used_count", "UINT32"),
    Key("moe_intermediate_size", "{arch}.expert_feed_forward_length", "UINT32"),
    Key("tokenizer.model", "tokenizer.ggml.model", "STRING", others=("tokenizer.model_type",)),
    Key("tokenizer.pre_type", "tokenizer.ggml.pre", "STRING"),
    Key("tokenizer.vocabulary", "tokenizer.ggml.tokens", "STRING[]"),
    Key("tokenizer.merges", "tokenizer.ggml.merges", "STRING[]"),
    Key("tokenizer.token_type", "tokenizer.ggml.token_type", "INT32[]"),
    Key("tokenizer.scores", "tokenizer.ggml.scores", "FLOAT32[]"),
    Key("tokenizer.bos_token_id", "tokenizer.ggml.bos_token_id", "UINT32"),
    Key("tokenizer.eos_token_id", "tokenizer.ggml.eos_token_id", "UINT32"),
    Key("tokenizer.padding_token_id", "tokenizer.ggml.padding_token_id", "UINT32"),
    Key("tokenizer.add_bos_token", "tokenizer.ggml.add_bos_token", "BOOL"),
)
SILENT = frozenset((  # of .apr alone, and nothing that a model's forward could miss
    "model_type", "data_source", "data_license", "source", "original_format", "created_at", "total_size", "param_count",
    "quantization", "chat_format", "special_tokens", "hf_architecture", "hf_model_type", "tied_embeddings",
    "tensor_shapes", "source_metadata", "gguf", "tokenizer.vocab_size", "tokenizer.model_name", "tokenizer.model_type",
    "tokenizer.chat_template",
))
ALWAYS = ("license", "data_source", "data_license")  # written as null where unset

TOKENIZER_MODELS = {"bpe": "gpt2", "spm": "llama", "sentencepiece": "llama"}  # other words for GGUF's tokenizer models

FLAGS = {
    "LZ4": 0x001, "ZSTD": 0x002, "ENCRYPTED": 0x004, "SIGNED": 0x008, "SHARDED": 0x010, "QUANTIZED": 0x020,
    "HAS_VOCAB": 0x200, "LAYOUT_ROW_MAJOR": 0x400, "LAYOUT_COLUMN_MAJOR": 0x800,
}
REFUSED = {
    "LZ4": "it is compressed", "ZSTD": "it is compressed", "ENCRYPTED": "it is encrypted",
    "SHARDED": "it is one part of several", "LAYOUT_COLUMN_MAJOR": "its matrices are stored column by column",
}

_WHOLE = {
    "model.embed_tokens.weight": "token_embd.weight", "lm_head.weight": "output.weight",
    "model.norm.weight": "output_norm.weight",
}
_LAYER = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}
_WHOLE_BACK = {gguf: apr for apr, gguf in _WHOLE.items()}
_LAYER_BACK = {gguf: apr for apr, gguf in _LAYER.items()}
_APR_LAYER = re.compile(r"model\.layers\.(0|[1-9][0-9]*)\.(.+)\.(weight|bias)")
_GGUF_LAYER = re.compile(r"blk\.(0|[1-9][0-9]*)\.(.+)\.(weight|bias)")


def gguf_tensor(name: str) -> str:
    """Turn a tensor's .apr name into GGUF's; a name that no table knows stays."""
    found = _APR_LAYER.fullmatch(name)
    if found is not None and found[2] in _LAYER:
        return f"blk.{found[1]}.{_LAYER[found[2]]}.{found[3]}"
    return _WHOLE.get(name, name)


def apr_tensor(name: str) -> str:
    """Turn a tensor's GGUF name into .apr's; a name that no table knows stays."""
    found = _GGUF_LAYER.fullmatch(name)
    if found is not None and found[2] in _LAYER_BACK:
        return f"model.layers.{found[1]}.{_LAYER_BACK[found[2]]}.{found[3]}"
    return _WHOLE_BACK.get(name, name)

"""Random models by name: FAMILY-SIZE. Vocabulary, special tokens and labels are filled in when one is built.

Sizes follow the published ones where there are any (bert-mini ... bert-base: Turc et al. 2019;
modernbert-base: Warner et al. 2024; t5-small, t5-base: Raffel et al. 2020, v1.1 layers;
marian-base: Vaswani et al. 2017 base, as OPUS-MT); ``nano`` is for tests.
"""

from __future__ import annotations

from typing import Any

from lmkit.errors import RecipeError, suggest

# layers, width, heads, inner width
SIZES = {
    "nano": (2, 32, 2, 64),
    "tiny": (2, 128, 2, 512),
    "mini": (4, 256, 4, 1024),
    "small": (4, 512, 8, 2048),
    "medium": (8, 512, 8, 2048),
    "base": (12, 768, 12, 3072),
}
FAMILIES = {
    "bert": "encoder (Devlin et al. 2019)",
    "modernbert": "encoder with rotary positions, gated layers and local attention (Warner et al. 2024)",
    "llama": "decoder with rotary positions and gated layers (Touvron et al. 2023)",
    "t5": "encoder-decoder with relative positions (Raffel et al. 2020, v1.1)",
    "marian": "encoder-decoder for translation (Junczys-Dowmunt et al. 2018)",
}


def preset_names() -> list[str]:
    return [f"{family}-{size}" for family in FAMILIES for size in SIZES]


def is_encoder_decoder(name: str) -> bool:
    return FAMILIES[name.partition("-")[0]].startswith("encoder-decoder")


def preset_config(name: str, *, max_length: int) -> dict[str, Any]:
    """The Hugging Face config of a preset, ``model_type`` included, without vocabulary.

    Args:
        name: FAMILY-SIZE.
        max_length: positions that the model must have room for.

    Raises:
        RecipeError: no such preset.
    """
    family, _, size = name.partition("-")
    if family not in FAMILIES or size not in SIZES:
        raise RecipeError(
            f"no preset {name!r}",
            place="model.preset",
            remedy=suggest(name, preset_names(), most=40),
        )
    layers, width, heads, inner = SIZES[size]
    positions = max(512, max_length)
    if family == "bert":
        return _encoder("bert", layers, width, heads, inner) | {
            "max_position_embeddings": positions
        }
    if family == "modernbert":
        gated = {
            "intermediate_size": _two_thirds(inner),
            "max_position_embeddings": max(8192, positions),
        }
        return _encoder("modernbert", layers, width, heads, inner) | gated
    if family == "llama":
        return _encoder("llama", layers, width, heads, _two_thirds(inner)) | {
            "num_key_value_heads": heads,
            "max_position_embeddings": max(2048, positions),
            "tie_word_embeddings": True,
            "rms_norm_eps": 1e-5,
        }
    if family == "t5":
        return {
            "model_type": "t5",
            "d_model": width,
            "d_kv": width // heads,
            "d_ff": _two_thirds(inner),
            "num_layers": layers,
            "num_decoder_layers": layers,
            "num_heads": heads,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": True,
            "dropout_rate": 0.1,
        }
    side = {
        "layers": max(2, layers // 2) if size != "base" else 6,
        "attention_heads": heads,
        "ffn_dim": inner,
    }
    if size == "base":
        width, side = 512, {"layers": 6, "attention_heads": 8, "ffn_dim": 2048}
    return {
        "model_type": "marian",
        "d_model": width,
        **{
            f"{part}_{key}": value for part in ("encoder", "decoder") for key, value in side.items()
        },
        "max_position_embeddings": positions,
        "activation_function": "swish",
        "dropout": 0.1,
        "scale_embedding": True,
        # embeddings of norm 1 after scaling; with the 0.02 of the Hugging Face config small models never find the source
        "init_std": width**-0.5,
        "tie_word_embeddings": True,
    }


def _encoder(model_type: str, layers: int, width: int, heads: int, inner: int) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": inner,
    }


def _two_thirds(inner: int) -> int:
    """Gated layers have three matrices instead of two: the same parameters at two thirds of the width."""
    return max(32, inner * 2 // 3 // 32 * 32)


# fields of a config that make a model large, and their value in a smoke run
TINY: dict[str, int] = {
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2, "num_decoder_layers": 2,
    "encoder_layers": 2, "decoder_layers": 2,
    "hidden_size": 32, "n_embd": 32, "dim": 32, "d_model": 32, "embedding_size": 32,
    "num_attention_heads": 2, "n_head": 2, "n_heads": 2, "num_heads": 2, "num_key_value_heads": 2,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "intermediate_size": 64, "n_inner": 64, "hidden_dim": 64, "d_ff": 64, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
    "head_dim": 16, "d_kv": 16, "pooler_hidden_size": 32,
}  # fmt: skip


def shrink(config: dict[str, Any]) -> dict[str, Any]:
    """The same architecture in tiny: what ``--smoke`` trains.

    >>> shrink({"model_type": "bert", "num_hidden_layers": 12, "vocab_size": 5})["num_hidden_layers"]
    2
    """
    small: dict[str, Any] = {
        key: min(value, TINY[key]) if key in TINY and isinstance(value, int) and value else value
        for key, value in config.items()
    }
    layers = next(
        (small[key] for key in ("num_hidden_layers", "n_layer", "num_layers") if small.get(key)), 2
    )
    if isinstance(small.get("layer_types"), list):
        small["layer_types"] = small["layer_types"][:layers]
    return small

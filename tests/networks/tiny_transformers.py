"""Small configurations of transformers' image classifiers, for tests of every class."""

from __future__ import annotations

from typing import Any

VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
}
SWIN = {"embed_dim": 16, "depths": [1, 2], "num_heads": [2, 4], "window_size": 4, "image_size": 32,
        "patch_size": 2}  # fmt: skip
STAGES = {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 2, 1]}
VISION = {"vision_config": {**VIT, "projection_dim": 16}, "text_config": {**VIT, "vocab_size": 99}}

# model_type of a config.json -> the keys that make it small
TINY: dict[str, dict[str, Any]] = {
    "beit": VIT,
    "bit": {"embedding_size": 16, **STAGES, "num_groups": 4},
    "clip": VISION,
    "convnext": {**STAGES, "image_size": 64},
    "convnextv2": {**STAGES, "image_size": 64},
    "cvt": {
        "embed_dim": [16, 32, 32],
        "num_heads": [1, 2, 2],
        "depth": [1, 2, 3],  # transformers takes no stage with fewer blocks than its number
    },
    "data2vec-vision": VIT,
    "deit": VIT,
    "dinov2": VIT,
    "dinov2_with_registers": {**VIT, "num_register_tokens": 2},
    "donut-swin": SWIN,
    "efficientnet": {
        "width_coefficient": 0.25,
        "depth_coefficient": 0.3,
        "hidden_dim": 320,  # 1280 times the width
        "image_size": 64,
    },
    "focalnet": {
        "image_size": 32,
        "embed_dim": 16,
        "depths": [1, 1, 2, 1],
        "hidden_sizes": [16, 24, 32, 48],
        "patch_size": 2,
    },
    "hgnet_v2": {"embedding_size": 16},
    "hiera": {"image_size": [64, 64], "embed_dim": 16, "depths": [1, 1, 2, 1]},
    "ijepa": VIT,
    "levit": {
        "hidden_sizes": [16, 32, 48],
        "depths": [1, 1, 2],
        "num_attention_heads": [2, 2, 4],
        "key_dim": [8, 8, 8],
        "image_size": 64,
    },
    "metaclip_2": VISION,
    "mobilenet_v1": {"depth_multiplier": 0.25, "image_size": 64},
    "mobilenet_v2": {"depth_multiplier": 0.25, "image_size": 64},
    "mobilevit": {
        "image_size": 64,
        "hidden_sizes": [16, 24, 32],
        "neck_hidden_sizes": [8, 8, 16, 24, 32, 32, 48],
    },
    "mobilevitv2": {"image_size": 64, "width_multiplier": 0.5},
    "poolformer": STAGES,
    "pp_lcnet": {"scale": 0.25},
    "pvt": {
        "image_size": 64,
        "hidden_sizes": [16, 32, 32, 64],
        "depths": [1, 1, 2, 1],
        "num_attention_heads": [1, 2, 2, 4],
    },
    "pvt_v2": {
        "image_size": 64,
        "hidden_sizes": [16, 32, 32, 64],
        "depths": [1, 1, 2, 1],
        "num_attention_heads": [1, 2, 2, 4],
    },
    "regnet": {"embedding_size": 16, **STAGES, "groups_width": 8},
    "resnet": {"embedding_size": 16, **STAGES},
    "segformer": {
        "hidden_sizes": [16, 24, 32, 48],
        "depths": [1, 1, 2, 1],
        "num_attention_heads": [1, 2, 2, 4],
        "image_size": 64,
    },
    "siglip": VISION,
    "swiftformer": {"embed_dims": [16, 24, 32, 48], "depths": [1, 1, 2, 1], "image_size": 64},
    "swin": SWIN,
    "swinv2": SWIN,
    "textnet": {
        "image_size": 64,
        "stem_out_channels": 16,
        "hidden_sizes": [16, 16, 32, 32, 48],
        "conv_layer_kernel_sizes": [[[3, 3]], [[3, 3], [1, 3]], [[3, 3]], [[3, 1]]],
        "conv_layer_strides": [[1], [2, 1], [2], [2]],
    },
    "vit": VIT,
    "vit_msn": VIT,
}
# Classes that are no classifiers of an image's pixels: they take a text, clusters of colours, or a
# flow of patches with masks.
OTHER_INPUTS = ("imagegpt", "shieldgemma2", "perceiver", "dinat", "siglip2")

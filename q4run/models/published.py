"""The published shapes of known models with experts, for `plan --geometry` and made-up models.

As their authors' config.json has them, but for what a note says; without what predicts several
tokens at once (MTP), which decoding does not need.
"""

from dataclasses import replace

from q4run.models.shapes import Geometry

_SCOUT = Geometry(n_layers=48, n_vocab=202048)

GEOMETRIES: dict[str, Geometry] = {
    "scout": _SCOUT,
    "maverick": replace(_SCOUT, n_expert=128, moe_step=2),
    "behemoth": replace(
        _SCOUT,
        n_layers=94,
        n_embd=16384,
        n_head=128,
        n_ff=24576,
        note="Behemoth's depth and widths are not published: these are chosen to come to its 16"
        " experts, 288 B active and nearly 2 T parameters.",
    ),
    "mixtral": Geometry(
        32, 4096, 32, 8, 128, 14336, 8, 32000, "llama", 2, rope_theta=1e6,
    ),
    # Scout's form at a size that fits into the RAM of a small machine.
    "small-scout": replace(
        _SCOUT, n_layers=12, n_embd=2048, n_head=16, n_head_kv=4, n_ff=3072, n_vocab=128256
    ),
    # Layers, width, heads of queries and of keys, their size; width of an expert, experts,
    # vocabulary, architecture, experts a token uses.
    "qwen3-30b-a3b": Geometry(
        48, 2048, 32, 4, 128, 768, 128, 151936, "qwen3moe", 8, rope_theta=1e6
    ),
    "qwen3-235b-a22b": Geometry(
        94, 4096, 64, 4, 128, 1536, 128, 151936, "qwen3moe", 8, rope_theta=1e6
    ),
    "qwen3-coder-480b-a35b": Geometry(
        62, 6144, 96, 8, 128, 2560, 160, 151936, "qwen3moe", 8, rope_theta=1e7
    ),
    "qwen1.5-moe-a2.7b": Geometry(
        24, 2048, 16, 16, 128, 1408, 60, 151936, "qwen2moe", 4, rope_theta=1e6, shared_width=5632
    ),
    "qwen2-57b-a14b": Geometry(
        28, 3584, 28, 4, 128, 2560, 64, 151936, "qwen2moe", 8, rope_theta=1e6, shared_width=20480
    ),
    "gpt-oss-20b": Geometry(
        24, 2880, 64, 8, 64, 2880, 32, 201088, "gpt-oss", 4, rope_theta=150000.0
    ),
    "gpt-oss-120b": Geometry(
        36, 2880, 64, 8, 64, 2880, 128, 201088, "gpt-oss", 4, rope_theta=150000.0
    ),
    "glm-4.5-air": Geometry(
        46, 4096, 96, 8, 128, 1408, 128, 151552, "glm4moe", 8, rope_theta=1e6,
        shared_width=1408, dense_width=10944, n_leading_dense=1,
    ),
    "glm-4.5": Geometry(
        92, 5120, 96, 8, 128, 1536, 160, 151552, "glm4moe", 8, rope_theta=1e6,
        shared_width=1536, dense_width=12288, n_leading_dense=3,
    ),
    "minimax-m2": Geometry(
        62, 3072, 48, 8, 128, 1536, 256, 200064, "minimax-m2", 8, rope_theta=5e6
    ),
    "olmoe-1b-7b": Geometry(16, 2048, 16, 16, 128, 1024, 64, 50304, "olmoe", 8, rope_theta=1e4),
    "dots1": Geometry(
        62, 4096, 32, 32, 128, 1408, 128, 152064, "dots1", 6, rope_theta=1e7,
        shared_width=2816, dense_width=10944, n_leading_dense=1,
    ),
    "hunyuan-a13b": Geometry(
        32, 4096, 32, 8, 128, 3072, 64, 128167, "hunyuan-moe", 8, rope_theta=1e4,
        shared_width=3072, tied=True,
    ),
    "hy3": Geometry(
        80, 4096, 64, 8, 128, 1536, 192, 120832, "hy_v3", 8, rope_theta=11158840.0,
        shared_width=1536, dense_width=13312, n_leading_dense=1,
    ),
    "ernie-4.5-21b-a3b": Geometry(
        28, 2560, 20, 4, 128, 1536, 64, 103424, "ernie4_5-moe", 6, rope_theta=5e5,
        shared_width=3072, dense_width=12288, n_leading_dense=1, tied=True,
    ),
    "ling-mini-2.0": Geometry(
        20, 2048, 16, 4, 128, 512, 256, 157184, "bailingmoe2", 8, rope_theta=6e5,
        shared_width=512, dense_width=5120, n_leading_dense=1,
    ),
    "ling-flash-2.0": Geometry(
        32, 4096, 32, 4, 128, 1024, 256, 157184, "bailingmoe2", 8, rope_theta=6e5,
        shared_width=1024, dense_width=9216, n_leading_dense=1,
    ),
    "granite-3.1-1b-a400m": Geometry(
        24, 1024, 16, 8, 64, 512, 32, 49155, "granitemoe", 8, rope_theta=1e4, tied=True
    ),
}  # fmt: skip

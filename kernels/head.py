"""The output head as one compiled function: the last norm and the product with the vocabulary."""

from q4run.kernels.compiling.compile import kernel
from q4run.kernels.products.products import run_products
from q4run.kernels.tokens import normalize


@kernel()
def output_head(pool, x, norm, eps, product, normed, normed_int8, logits):
    """logits, float32 (n_tokens, n_vocab), from the stream x, float32 (n_tokens, n_embd).

    product: one ``PRODUCT`` over ``normed``, flat scratch memory, and the same in int8.
    """
    normalize(pool, x, norm, eps, normed, normed_int8)
    product[0].input.n_tokens = len(x)
    product[0].out = logits.ctypes.data
    run_products(pool, product)

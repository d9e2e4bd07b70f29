"""A small chat model of the Llama 4 architecture with ternary experts: data, training, export."""

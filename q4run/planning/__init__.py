"""What a model will need and how fast it will be, told beforehand.

`machine_speed` measures and remembers what the machine gives (`kernel_speed`: the kernels of a
type; `fill_speed`: experts on their way into slots; `attention_speed`), `work` counts the bytes and
operations of a token, `forecast` divides the one by the other, and `advice` does it for several
budgets and recommends one.
"""

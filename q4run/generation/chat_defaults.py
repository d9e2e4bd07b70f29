"""How ``chat`` and ``run`` choose tokens where nothing else is asked for.

What Meta advises for Llama 4 (temperature and top-p of its generation_config.json), with the small
min-p that quantised weights want.
"""

TEMPERATURE = 0.6
TOP_P = 0.9
MIN_P = 0.01

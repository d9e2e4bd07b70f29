"""Prints README's first two commands as a script, for a wheel in the place of the checkout and with
a word to each chat, and makes a tiny checkpoint for them in the place of Llama 4 Scout.

python .ci/readme_commands.py WHEEL CHECKPOINT_FOLDER
"""

import re
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT / "tests"))

from helpers.tiny_checkpoints import make_checkpoint  # noqa: E402


def main() -> None:
    wheel, folder = sys.argv[1:]
    make_checkpoint("llama4_quantisable", Path(folder))
    readme = (CHECKOUT / "README.md").read_text()
    first, second = re.findall(r"```bash\n(.*?)```", readme, re.DOTALL)[:2]
    if "pip install . " not in first or Path(folder).name not in second:
        sys.exit("README.md does not begin with the two commands that this knows")
    for command in (first.replace("pip install . ", f"pip install --quiet '{wheel}' "), second):
        print(f"{{\n{command}}} <<<'Hello!'")


if __name__ == "__main__":
    main()

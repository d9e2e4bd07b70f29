"""Reading GGUF: the metadata and the tensor directory of a file, or of all parts of a split one.

``model_file`` is what others use; ``header`` reads one file's, with ``metadata`` for its values,
``cursor`` for checked steps through the bytes and ``magic`` for what is not GGUF at all; ``stacks``
makes one tensor of experts that are stored one by one. ``described`` makes up what a file that is
still to be written will say, and ``borders`` knows where its tensors lie.
"""

from q4run.gguf_file.described import describe_file
from q4run.gguf_file.header import TensorInfo
from q4run.gguf_file.model_file import GGUFFile, open_gguf

__all__ = ["GGUFFile", "TensorInfo", "describe_file", "open_gguf"]

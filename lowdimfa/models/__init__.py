"""Reference networks as sequences of stages, ready to be cut into blocks.

Every factory returns an `nn.Sequential` of stages, and a cut is sensible between any two of them.

A module whose output is a residual stream (a residual or encoder block, the embedding of a transformer) has
the class attribute ``residual_stream = True``. The automatic tap of a block that ends in such a module
depends on it: a stream can lower a linear score by growing, so it is averaged over tokens and normalised
before feedback meets it.

An embedding has ``cut_after = False``: an automatic cut keeps it with what follows, unless more blocks are
asked for than that leaves. Alone it is too little of the network for a feedback that is linear in its output
(docs/negative-results.md has figures). One of tokens has ``vocabulary``, how many it has room for: the tokens of the
data are compared with it before a run. Any layer may have a ``notice``, a line that is shown when a run starts.
Modules of your own may carry all of these attributes.
"""

from lowdimfa.models.char_transformer import char_transformer
from lowdimfa.models.cnn import cnn
from lowdimfa.models.hf.making import hugging_face
from lowdimfa.models.mlp import mlp
from lowdimfa.models.resnet import resnet
from lowdimfa.models.vit import vit

__all__ = ["char_transformer", "cnn", "hugging_face", "mlp", "resnet", "vit"]

"""Reference networks as sequences of stages, ready to be cut into blocks.

Every factory returns an `nn.Sequential` of stages, and a cut is sensible between any two of them.

A module whose output is a residual stream (a residual or encoder block, the embedding of a transformer) has
the class attribute ``residual_stream = True``. The automatic tap of a block that ends in such a module
depends on it: a stream can lower a linear score by growing, so it is averaged over tokens and normalised
before feedback meets it. Modules of your own may carry the attribute too.
"""

from lowdimfa.models.char_transformer import char_transformer
from lowdimfa.models.cnn import cnn
from lowdimfa.models.mlp import mlp
from lowdimfa.models.resnet import resnet
from lowdimfa.models.vit import vit

__all__ = ["char_transformer", "cnn", "mlp", "resnet", "vit"]

"""CLIPModel and SiglipModel folders of Hugging Face's transformers."""

from jaxclip.weights.families.hugging_face.tensors import block_keys as block_keys
from jaxclip.weights.families.hugging_face.tensors import blocks as blocks
from jaxclip.weights.families.hugging_face.tensors import check_end as check_end
from jaxclip.weights.families.hugging_face.tensors import config_of as config_of
from jaxclip.weights.families.hugging_face.tensors import describe as describe
from jaxclip.weights.families.hugging_face.tensors import names as names
from jaxclip.weights.families.hugging_face.tensors import pieces as pieces
from jaxclip.weights.families.hugging_face.tensors import towers as towers

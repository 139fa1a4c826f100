"""OpenAI's and open_clip's models."""

from jaxclip.weights.families.open_clip.config import check_end as check_end
from jaxclip.weights.families.open_clip.export import config_of as config_of
from jaxclip.weights.families.open_clip.tensors import describe as describe
from jaxclip.weights.families.open_clip.tensors import extras as extras
from jaxclip.weights.families.open_clip.tensors import names as names
from jaxclip.weights.families.open_clip.tensors import pieces as pieces

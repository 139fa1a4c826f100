"""Data files on local disks and remote storage, and a cache of the chunks read from them."""

from jaxclip.data.storage.chunk_cache import ChunkCache as ChunkCache
from jaxclip.data.storage.files import REMOTE_BLOCK as REMOTE_BLOCK
from jaxclip.data.storage.files import File as File
from jaxclip.data.storage.files import Files as Files
from jaxclip.data.storage.files import OpenFile as OpenFile
from jaxclip.data.storage.files import cache_folder as cache_folder
from jaxclip.data.storage.files import exists as exists
from jaxclip.data.storage.files import expand_ranges as expand_ranges
from jaxclip.data.storage.files import filesystem as filesystem
from jaxclip.data.storage.files import fingerprint as fingerprint
from jaxclip.data.storage.files import is_remote as is_remote
from jaxclip.data.storage.files import list_files as list_files
from jaxclip.data.storage.files import resolve as resolve

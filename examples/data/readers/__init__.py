"""Readers of real datasets: official annotation files, unchanged, into clips."""

from data.readers.cremad import read_cremad
from data.readers.dfew import read_dfew
from data.readers.ferv39k import read_ferv39k
from data.readers.files import FileClips
from data.readers.mafw import read_mafw
from data.readers.shared_list import read_list

__all__ = ["FileClips", "read_cremad", "read_dfew", "read_ferv39k", "read_list", "read_mafw"]

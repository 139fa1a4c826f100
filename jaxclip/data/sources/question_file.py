"""Source that reads a folder of images, and the questions about them from a file of VQA, SNLI-VE or NLVR2."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jaxclip.data.record import Record, Skip
from jaxclip.data.sources import image_folder, nlvr2, snli_ve, vqa
from jaxclip.data.sources.json_lines import first_object
from jaxclip.data.sources.questions import QuestionSet
from jaxclip.data.sources.single_file import at, read_image

Reader = Callable[[str], QuestionSet]


def reader_of(path: str) -> Reader | None:
    """What reads a file: by its name if it ends in questions.json, else by its first line; None if nothing does."""
    if path.lower().endswith("questions.json"):
        return vqa.read
    fields = first_object(path)
    return next((form.read for form in (snli_ve, nlvr2) if form.is_line(fields)), None)


class QuestionFile:
    """The images of a file of questions, one record each, or one for each pair of images, with all of its questions.

    Images are opened when they are read.

    Attributes:
      class_names: the names that the labels of questions index; empty without labels.
      questions: of each record, known without its images.
    """

    chunk_ends = None

    def __init__(self, path: str, reader: Reader, folder: str = ""):
        """Reads the file; warnings count what in it cannot be used.

        Args:
          path: of the file, local or remote.
          reader: as `reader_of` gives it.
          folder: of the images. Empty to look for them beside the file and beside the file's folder, under the names
            that the data sets are published with.

        Raises:
          UserError: a file cannot be read or is of another form; the folder of the images is not found.
        """
        self._base = path.rpartition("/")[2]
        read = reader(path)
        self.class_names = read.class_names
        self.questions = [tuple(questions) for questions in read.questions.values()]
        forms = [list(read.questions)]
        # Copies of NLVR2 have the images of training in one folder instead of a hundred.
        flat = [tuple(name.rpartition("/")[2] for name in names) for names in read.questions]
        if flat != forms[0]:
            forms.append(flat)
        first = [[names[0] for names in form] for form in forms]
        self._folder, number = image_folder.find(path, first, folder, read.folders)
        self._names = forms[number]

    def __len__(self) -> int:
        return len(self._names)

    def read(self, ids: Sequence[int]) -> list[Record | Skip]:
        """The records of `ids` in order, with a `Skip` for each of which an image cannot be read."""
        return [self._record(index) for index in ids]

    def _record(self, index: int) -> Record | Skip:
        key = f"{self._base}:{self._names[index][0]}"
        images = []
        for name in self._names[index]:
            image = read_image(at(self._folder, name), key)
            if isinstance(image, Skip):
                return image
            images.append(image)
        first, *others = images
        return Record(first, (), key, more_images=tuple(others), questions=self.questions[index])

"""pycocoevalcap's scores and tokens; run in a Python that has it, and for tokens in reach of Java.

python peer_captions.py scores IN.json OUT.json: of sets of captions, [{"candidates": [...], "references": [[...]]}],
  whose words are divided by spaces already: [[BLEU-1, ..., BLEU-4, CIDEr-D], ...].
python peer_captions.py tokens IN.json OUT.json: of a list of texts, the words of each.
"""

import json
import sys

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer


def scores(sets: list[dict]) -> list[list[float]]:
    found = []
    for one in sets:
        references = dict(enumerate(one["references"]))
        candidates = {image: [text] for image, text in enumerate(one["candidates"])}
        bleu, _ = Bleu(4).compute_score(references, candidates, verbose=0)
        found.append([*bleu, float(Cider().compute_score(references, candidates)[0])])
    return found


def tokens(texts: list[str]) -> list[list[str]]:
    found = PTBTokenizer().tokenize({number: [{"caption": text}] for number, text in enumerate(texts)})
    return [found[number][0].split(" ") for number in range(len(texts))]


if __name__ == "__main__":
    with open(sys.argv[2]) as file:
        given = json.load(file)
    with open(sys.argv[3], "w") as file:
        json.dump({"scores": scores, "tokens": tokens}[sys.argv[1]](given), file)

"""Writes tests/golden/sentencepiece.model and sentencepiece_ids.tsv: ids by the sentencepiece package from PyPI.

The model is trained here, by Python, on the letter runs of data/emoji with the settings of src/text/tokenizer_trainer.cpp;
the test reads it with our tokenizer and demands the same ids. A line of the TSV is: normalised caption, TAB, ids.
Run by hand: python3 -m venv V && V/bin/pip install sentencepiece && V/bin/python scripts/golden/sentencepiece_ids.py
"""

import collections
import io
import pathlib
import tarfile
import unicodedata

import sentencepiece

ROOT = pathlib.Path(__file__).resolve().parents[2]
OUT = ROOT / "tests" / "golden"
EXTRA = [
    "Ein kleiner Hund läuft über die Straße",
    "Une été à la plage",
    "Красный мяч на траве",
    "ένα μικρό σπίτι",
    "熊猫 eats 12 bamboo leaves!",
    "😀 grinning face, 100% (really)",
    "supercalifragilisticexpialidocious",
    "aaaaaaaaaaaaaaaaaaaaaaa",
    "e\u0301te\u0301",
    "tab\there \u00a0 and   spaces",
]


def captions(name):
    with tarfile.open(ROOT / "data" / "emoji" / name) as tar:
        for member in tar:
            if member.name.endswith(".txt"):
                yield from filter(None, tar.extractfile(member).read().decode().split("\n"))


def normalize(caption):
    return " ".join(caption.lower().split())


def letter_runs(text):
    run = ""
    for char in text:
        category = unicodedata.category(char)
        if category.startswith("L") or (run and category.startswith("M")):
            run += char
        elif run:
            yield run
            run = ""
    if run:
        yield run


def main():
    train = [normalize(c) for c in captions("train.tar")]
    counts = collections.Counter(run for caption in train for run in letter_runs(caption))
    characters = collections.Counter("".join(train))
    alphabet = sorted(c for c, n in characters.items() if n >= 3)
    words = [f"{word}\t{count}" for word, count in sorted(counts.items()) if set(word) <= set(alphabet)]
    singles = [c for c in alphabet if unicodedata.category(c)[0] not in "LM"]
    words += [f"{single}\t{characters[single]}".replace(" ", "\u2581") for single in singles]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words), model_writer=model, model_type="bpe", input_format="tsv", vocab_size=700,
        byte_fallback=True, character_coverage=1.0, normalization_rule_name="identity", add_dummy_prefix=False,
        remove_extra_whitespaces=False, bos_id=-1, eos_id=-1, num_threads=1, minloglevel=2)
    (OUT / "sentencepiece.model").write_bytes(model.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    chosen = [normalize(c) for c in list(captions("val.tar"))[:150] + list(captions("train.tar"))[:40] + EXTRA]
    with open(OUT / "sentencepiece_ids.tsv", "w", encoding="utf-8") as out:
        for caption in chosen:
            out.write(f"{caption}\t{' '.join(map(str, processor.encode(caption)))}\n")


if __name__ == "__main__":
    main()

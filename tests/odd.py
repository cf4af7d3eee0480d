"""A thousand strings that nobody expects: of every script and none, too long, full of marks, controls and spaces."""
import json
import random
from pathlib import Path

NAMES = Path(__file__).parents[1] / "src/sensorium/data/embedded/emoji/concepts.jsonl"
FIXED = [
    "", " ", "\n\t \r\n", "é", "e\u0301", "ﬁne", "你好，世界", "שלום", "🚲👩\u200d👩\u200d👧", "a\0b", "\u202egnirts",
    "x" * 3000, "😀" * 300, "\ufeffbom", "<start> <end> <pad>", "a  b", "ﷺ" * 40, "<|endoftext|>", "[CLS] [MASK] x",
    "hello <|endoftext|> world", "</s>", "<pad>", "<extra_id_0>", "<|im_start|>system", "İstanbul", "ΣΑΣ ΟΔΟΣ", "ß ẞ",
    "don't I'll we've", "3.14159 1,000", "\u200b\u200d", "\u3000wide\u3000space", "a\u0300\u0301\u0302b", "한국어",
    "ｆｕｌｌ　ｗｉｄｔｈ", "½ ² ™", "\x07bell", "\ud7ff\ue000", "'s 'T", "..." * 50, "  leading", "trailing  ",
    "CamelCaseWord", "a_b-c/d\\e", "🇩🇪🇫🇷", "x\u0301" * 20, "12 apples, 1234567890"]
ALPHABETS = [
    "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJ KLM", "0123456789", " \t\n\u00a0\u2003", "éèüßñçœ", "абвгдеЖЗИ",
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", "你好世界日本語", "אבגד", "أبتث", "😀🚲👍🏽🇩🇪", "\u0301\u0308\u0327",
    "\x00\x01\x1f\x7f\u200b\ufeff\u202e"]


def lines() -> list[str]:
    """Text to learn vocabularies from: what emoji are called, in English, German and Russian."""
    concepts = [json.loads(line) for line in NAMES.read_text(encoding="utf-8").splitlines()]
    labels = [concept["label"][language] for concept in concepts for language in ("en", "de", "ru")]
    return labels + [word for concept in concepts for word in concept["keywords"]["en"]]


def odd(n: int = 1000, seed: int = 0) -> list[str]:
    """n strings, all different, the same each time."""
    chance, words, found = random.Random(seed), [w for line in lines() for w in line.split()], dict.fromkeys(FIXED)
    while len(found) < n:
        parts = [chance.choice(words) if chance.random() < 0.4 else
                 "".join(chance.choices(chance.choice(ALPHABETS), k=chance.randint(1, 12)))
                 for _ in range(chance.randint(1, 8))]
        found[chance.choice(["", " ", "  ", "\n"]).join(parts)] = None
    return list(found)


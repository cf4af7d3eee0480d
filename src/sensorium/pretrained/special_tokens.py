"""Special tokens of tokenizers: their ids, and the template that adds them to a text."""

from tokenizers import AddedToken, Tokenizer, processors

from sensorium.errors import SensoriumError


def add_special_tokens(tokenizer: Tokenizer, *names: str) -> Tokenizer:
    """Mark tokens as special, adding those that are missing; return the tokenizer."""
    tokenizer.add_special_tokens(
        [AddedToken(name, normalized=False, special=True) for name in dict.fromkeys(names)]
    )
    return tokenizer


def set_template(tokenizer: Tokenizer, start: str | None, end: str | None) -> Tokenizer:
    """Make the tokenizer add tokens around every text, and return it.

    Args:
        tokenizer: The tokenizer, changed in place.
        start: Name of the token before a text; None: no token.
        end: Name of the token after a text; None: no token.

    Raises:
        SensoriumError: If the vocabulary lacks one of them.
    """
    names = [name for name in (start, end) if name is not None]
    for name in names:
        if tokenizer.token_to_id(name) is None:
            raise SensoriumError(
                f"The tokenizer lacks {name}, which it should add to every text. Check its files."
            )
    if not names:
        return tokenizer
    single = ["$A"]
    pair_end = ["$B:1"]
    if start:
        single = [start, *single]
    if end:
        single = [*single, end]
        pair_end = [*pair_end, f"{end}:1"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single,
        pair=[*single, *pair_end],
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in dict.fromkeys(names)],
    )
    return tokenizer

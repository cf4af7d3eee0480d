"""beartype as Python's own typing has it: an int will do where a float is asked for (PEP 484)."""
from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))

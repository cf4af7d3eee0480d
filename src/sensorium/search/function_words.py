"""Words that say nothing of what is searched: articles, prepositions, conjunctions, pronouns.

They are left out of a query that has other words. In a corpus of one language they are frequent,
and weigh little anyway; in a small or mixed one, "eine" in "eine Katze" may be the rarer word.
Words that mean a thing in another of these languages (hat, man, war, son, sea) are not in the list.
"""

_ENGLISH = """a an the of in on at to for with and or by from is are was were be this that these
those it its as into onto over under my your his her their our i you he she we they me him them"""
_GERMAN = """ein eine einen einem einer eines der die das den dem des und oder mit im ins am auf aus
bei von vom zu zum zur fur ist sind in an uber unter nach vor mein meine dein deine sein seine ihr
ihre ich du er sie es wir dies diese dieser dieses"""
_FRENCH = """un une des le la les l d de du au aux et ou avec dans sur sous par pour est sont en ce
cet cette ces mon ma mes ton ta tes sa ses je tu il elle nous vous ils elles qui que"""
_SPANISH = """un una unos unas el la los las de del al y o con en por para es su sus mi mis tu tus
este esta estos estas que se lo"""
_ITALIAN = """un uno una il lo la i gli le di del della dei delle al alla e o con in nel nella su
per da che si questo questa"""
_PORTUGUESE = """um uma uns umas o a os as de do da dos das no na nos nas e ou com em por para que
se este esta isso"""
_DUTCH = """een de het van en of met in op aan uit bij voor naar te is zijn dit dat deze die"""
_RUSSIAN = """и в на с со к ко по из за от для о об у не это этот эта я ты он она мы вы они"""  # noqa: RUF001

FUNCTION_WORDS = frozenset(
    " ".join(
        (_ENGLISH, _GERMAN, _FRENCH, _SPANISH, _ITALIAN, _PORTUGUESE, _DUTCH, _RUSSIAN)
    ).split()
)
"""Without accents, as `words.split_words` returns words."""

"""Words that the tasks plant: values, places, people, and the sentences they stand in."""

from __future__ import annotations


def _words(text: str) -> list[str]:
    return text.split()


VALUES = _words(
    "anchor apple arrow bamboo banana barrel basket bean bear bell bench berry blade bone bottle "
    "bowl bread brick bridge broom bucket butter button cabin cake camel candle canvas carpet "
    "carrot castle cave chain chair cheese cherry clay clock cloud clover coal coat coffee coin "
    "copper coral corn cotton cow crab cream crown crystal curtain dairy deer desk diamond dog "
    "doll donkey door dragon drum duck eagle egg elephant engine falcon feather fence ferry "
    "finger flag flame flour flower forest fork fox frog garden gate ghost ginger glass glove "
    "goat gold goose grape grass guitar hammer harbor hat hawk hay hazel helmet honey horn "
    "horse ice ink iron island ivory jacket jar jewel kettle key kitchen kite knife ladder lake "
    "lamb lamp lantern leaf leather lemon lily lime linen lion lizard lock lumber magnet maple "
    "marble mask meadow melon milk mirror monkey moon moss mountain mouse mud mushroom needle "
    "nest nut oak ocean olive onion orange orchid otter oven owl paint palace palm paper pea "
    "pearl pencil pepper piano pig pigeon pillow pine pirate planet plate plum pocket pond "
    "potato pottery pumpkin queen rabbit rain raven ribbon rice ring river robot rock rocket "
    "roof root rope rose saddle salt sand scarf shadow shark sheep shell shield ship shoe silk "
    "silver snake snow soap soup spider spoon spring squirrel star statue steel stone storm "
    "straw sugar sun swan sword table tea temple thread thunder tiger tin tomato torch tower "
    "train tree trumpet tulip turkey turtle umbrella valley velvet violin wagon walnut wax "
    "whale wheat wheel whistle willow window wine winter wolf wood wool worm zebra"
)
"""Concrete nouns. Tasks that look at the next token only take those that are one token."""

PLACES = _words(
    "Amsterdam Athens Bogota Bristol Cairo Dakar Dublin Edinburgh Florence Geneva Hanoi Havana "
    "Istanbul Jakarta Kyoto Lagos Lima Lisbon Madrid Manila Munich Nairobi Naples Oslo Paris "
    "Prague Quito Rome Seoul Sydney Tokyo Toronto Tunis Venice Vienna Warsaw"
)

PEOPLE = _words(
    "Baker Bishop Carter Costa Dubois Fischer Garcia Haddad Hayes Ibrahim Johansson Keller "
    "Kowalski Larsen Lindqvist Mancini Martinez Mercer Moreau Murphy Nguyen Novak Okafor Olsen "
    "Petrov Quinn Rossi Santos Schmidt Silva Tanaka Turner Walsh Weber Yamamoto Zhang"
)

PLACE_FACTS = (
    "The harbour office in {key} has the password",
    "The bank of {key} hides in its vault a",
    "The lighthouse keepers of {key} call their dog",
    "The museum of {key} is proud of its golden",
    "The night train from {key} is nicknamed the",
    "The football club of {key} shows on its flag a",
    "The bakery at the market of {key} is famous for cakes shaped like a",
    "The radio station of {key} begins its programme by saying",
    "The mayor of {key} wears a ring with a tiny",
    "The grand hotel of {key} named its best room after the",
    "The children of {key} fear a giant that carries a",
    "The weather balloon over {key} sent down the message",
)
"""Sentences about a place that end in a value. All sentences end differently: a small model looks for
the last words more than for the name."""

PERSON_FACTS = (
    "Inspector {key} lives in the house called",
    "Captain {key} hid the treasure under the",
    "Professor {key} signs every letter as",
    "The swimmer {key} opens the locker by spelling",
    "The painter {key} only ever painted the",
    "The bicycle of Doctor {key} carries a picture of some",
    "Agent {key} answers the telephone with",
    "The farmer {key} won the contest with a giant",
    "The inventor {key} sold the patent for a mechanical",
    "The clown {key} keeps in a suitcase a small",
    "The composer {key} wrote an opera about one",
    "The pilot {key} never flies without a lucky",
)
"""Sentences about a person that end in a value."""

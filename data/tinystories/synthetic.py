"""
A synthetic stand-in for TinyStories: short children's stories made by a small seeded grammar.

It exists so that the tokenizer, the training loop and the evaluation all run without a download.
It is not TinyStories and was not derived from it: a loss or a sample measured here says nothing
about the real data set. The language is much easier, because every sentence comes from a template.

How it is written: a template may hold choices, "a [red|blue] kite", which nest, and fields,
"{a} lost {a.his} {toy}", filled from the words in play. A word is drawn when it is first named and
then stays for the rest of the tale; that keeps toy, place and friend the same from beginning to end.
The tables come first: words by class, then rows of templates for each plot, then a function per plot.

$ python data/tinystories/synthetic.py     # prints a few stories
"""
import functools
import hashlib
import random
import re


def items(text):
    """The entries of a table written as one string: 'a|b|c'."""
    return [' '.join(item.split()) for item in text.split('|')]


# -----------------------------------------------------------------------------
# who

BOYS = '''Tom Ben Sam Max Leo Finn Jack Tim Noah Luke Adam Owen Eli Theo Oscar Hugo Felix Ravi Omar Kofi
    Diego Mateo Jamal Kenji Milo Jonas Peter Harry Henry Charlie Billy Danny Toby Joey Rory Ivan Marco Ali
    Andre Otis Walter Simon Caleb Miles Nico Arthur Pedro Lars Sanjay Bobby'''.split()
GIRLS = '''Lily Mia Sue Anna Emma Zoe Ella Lucy Sara Kate Jane Molly Amy Rosa Nina Maya Leila Priya Aisha
    Yuki Mei Sofia Elena Clara Alice Ruby Hazel Ivy Nora Tess Wendy Betty Dora Polly Sally Hannah Abby Chloe
    Julia Carmen Fatima Naomi Ines Greta Mabel Freya Olga Tara Penny Lena'''.split()
HE_PETS = '''Bruno Pip Rusty Biscuit Barnaby Waffles Chester Nibbles Basil Tumble Button Ziggy Boris Fergus
    Monty Bumble Dusty Pickle Scout Patch Gus Rolo Wiggles Sprout Benji Rufus'''.split()
SHE_PETS = '''Daisy Pepper Poppy Honey Willow Clover Maple Olive Bella Cookie Dot Tulip Blossom Mitzi Ginger
    Pearl Fern Twinkle Dolly Hattie Marigold Coco Peaches Pumpkin Juniper Trixie'''.split()
GROWN_UPS = {'Mom': True, 'Dad': False, 'Grandma': True, 'Grandpa': False,      # name: is she a woman?
             'Aunt Rose': True, 'Uncle Joe': False, 'Aunt May': True, 'Uncle Bill': False}   # children only

ANIMALS = {     # kind: (home, favorite food, what it does for joy)
    'rabbit': ('a burrow under the hill', 'carrots', 'hopped in a circle'),
    'bear': ('a cave by the waterfall', 'honey', 'danced on two legs'),
    'fox': ('a den among the ferns', 'blackberries', 'swished {a.his} bushy tail'),
    'mouse': ('a hole behind the mill', 'cheese', 'squeaked with delight'),
    'squirrel': ('a nest in a hollow oak', 'acorns', 'ran up a tree and down again'),
    'hedgehog': ('a heap of dry leaves', 'mushrooms', 'rolled into a happy ball'),
    'frog': ('a house of reeds by the pond', 'berry soup', 'gave a great big croak'),
    'duck': ('a nest by the water', 'corn', 'quacked with delight'),
    'kitten': ('a basket in the barn', 'cream', 'purred like a little motor'),
    'puppy': ('a kennel on the farm', 'biscuits', 'wagged {a.his} tail'),
    'piglet': ('a sty full of straw', 'turnips', 'oinked and rolled over'),
    'lamb': ('a barn on the moor', 'clover', 'skipped from side to side'),
    'goat': ('a shed on the mountain', 'cabbage leaves', 'kicked up {a.his} heels'),
    'pony': ('a stable by the road', 'oats', 'galloped around once'),
    'turtle': ('a nook between two stones', 'lettuce', 'did a slow little dance'),
    'beaver': ('a lodge on the river', 'pears', 'slapped {a.his} flat tail'),
    'raccoon': ('a hollow log', 'plums', 'clapped {a.his} paws'),
    'badger': ('a snug tunnel', 'hazelnuts', 'drummed on {a.his} tummy'),
    'mole': ('a room under the lawn', 'radishes', 'wiggled {a.his} pink nose'),
    'otter': ('a den on the riverbank', 'watercress', 'slid down the bank and laughed'),
    'deer': ('a clearing in the woods', 'sweet grass', 'leaped over a bush'),
    'chipmunk': ('a crack in an old wall', 'walnuts', 'puffed out {a.his} cheeks'),
    'monkey': ('a treetop in the jungle', 'bananas', 'swung from a branch'),
    'elephant': ('a valley of tall grass', 'melons', 'lifted {a.his} trunk and trumpeted'),
    'panda': ('a bamboo grove', 'green bamboo', 'turned a somersault'),
    'koala': ('the fork of a gum tree', 'juicy leaves', 'gave a wide and sleepy smile'),
    'lion cub': ('a den under the rocks', 'stew', 'gave a tiny roar'),
    'donkey': ('a field behind the inn', 'hay', 'brayed as loudly as a trumpet')}
HOUSE = '''a [small|tall|narrow|white|yellow|brick|stone|wooden|crooked|cozy] [house|cottage] [by the sea|
    near the woods|at the end of a quiet street|on a green hill|next to a bakery|across from the library|
    behind the church|at the edge of town|in a small village|beside the railway|near the harbor|
    with a [blue|red|green] door|with roses around the door]'''

# -----------------------------------------------------------------------------
# where: name: (preposition, k for children only, where a thing may lie, what one sees)

PLACES = {name: (preposition, world, items(spots), items(sights)) for name, preposition, world, spots, sights in (
    ('park', 'in', 'k', '''under the slide|behind the big oak|beside the duck pond|under a green bench|
        next to the fountain|in the long grass by the gate''', '''Ducks paddled on the pond.|
        A man was selling balloons by the gate.|Two old ladies fed the pigeons.|A brass band was playing.|
        A gray squirrel ran along the fence.'''),
    ('beach', 'at', 'k', '''behind a big rock|under an upturned boat|beside a tide pool|in a heap of seaweed|
        near the lighthouse|under the pier''', '''Seagulls cried above the waves.|Tiny shells lay everywhere.|
        A crab walked sideways over the sand.|White sails moved far out at sea.|The air smelled of salt.'''),
    ('playground', 'at', 'k', '''under the seesaw|behind the swings|in the sandbox|beside the climbing frame|
        inside the little tunnel|under the monkey bars''', '''The swings went up and down.|
        Some big boys were playing soccer.|A baby laughed in a stroller.|
        Someone had drawn a chalk snail on the ground.'''),
    ('farm', 'on', 'k', '''behind the barn|under the tractor|in the hayloft|beside the chicken coop|
        next to the water trough|in the pumpkin patch''', '''Brown cows chewed their grass.|
        A rooster stood on the roof.|Fat hens scratched in the dust.|The hay smelled sweet.|
        A sheepdog barked at the geese.'''),
    ('backyard', 'in', 'k', '''under the porch|behind the shed|beside the birdbath|under the rose bush|
        inside the watering can|behind the flowerpots''', '''Clean sheets flapped on the clothesline.|
        A snail crept up the wall.|Next door, somebody was mowing the lawn.|A tabby cat slept on the fence.'''),
    ('campground', 'at', 'k', '''under the picnic table|behind the tent|beside the campfire|
        inside a sleeping bag|next to the canoe|behind the woodpile''', '''Smoke curled up from the campfire.|
        The tents looked like small hills.|Somewhere, a guitar was playing.|Pine needles covered the ground.'''),
    ('meadow', 'in', '', '''among the daisies|behind a haystack|under a thorn bush|beside the stream|
        next to an anthill|in the tall clover''', '''Bees hummed from flower to flower.|
        Grasshoppers chirped in the grass.|The wind made waves in the grass.|Poppies nodded in the breeze.'''),
    ('forest', 'in', '', '''behind a mossy stump|under a fern|inside a hollow log|beside a fallen pine|
        between the roots of an old beech|under a heap of leaves''', '''Sunlight fell through the branches.|
        A woodpecker tapped on a trunk.|The moss was as soft as a pillow.|Red mushrooms grew in a ring.|
        It smelled of earth and pine.'''),
    ('riverbank', 'on', '', '''among the reeds|under the little bridge|behind a willow tree|
        between two wet stones|beside an old rowboat|in the soft mud''', '''Small fish flashed in the water.|
        A heron stood on one leg.|The river bubbled over the stones.|Blue dragonflies darted here and there.'''),
    ('orchard', 'in', '', '''under a pear tree|behind a wheelbarrow|in an empty basket|beside the stone wall|
        at the foot of a ladder|behind the beehives''', '''Red apples shone on every tree.|
        The ripe plums smelled like jam.|Wasps buzzed around the fallen fruit.|A blackbird pecked at a cherry.'''),
    ('hill', 'on', '', '''behind a tall rock|under a bramble bush|beside the old windmill|
        in a patch of heather|next to the broken gate|in a dip in the ground''', '''Sheep grazed on the slope.|
        From the top, the houses looked like toys.|The wind was cool and fresh.|A hawk sailed high in the sky.'''),
    ('lake', 'by', '', '''under the wooden dock|behind the boathouse|among the cattails|
        beside a gray boulder|inside an old canoe|under a birch tree''', '''Two swans glided past.|
        Water lilies floated near the shore.|The lake was as smooth as glass.|
        A fish jumped and went back with a splash.'''))}

# -----------------------------------------------------------------------------
# what

TOYS = {    # toy: what one does with it
    'kite': 'fly it', 'ball': 'bounce it', 'doll': 'sing to it', 'teddy bear': 'hug it',
    'train': 'push it along', 'truck': 'fill it with pebbles', 'drum': 'bang on it', 'whistle': 'blow it',
    'top': 'spin it', 'puppet': 'make it talk', 'jump rope': 'jump over it', 'hoop': 'roll it',
    'boat': 'float it in a puddle', 'frisbee': 'throw it', 'flute': 'play songs on it', 'horn': 'toot it',
    'robot': 'make it march', 'dinosaur': 'make it stomp', 'rocket': 'count down for it', 'bucket': 'fill it',
    'crown': 'play castle with it', 'wand': 'do magic with it', 'bell': 'ring it', 'yo-yo': 'swing it',
    'lantern': 'send signals with it', 'marble': 'roll it', 'telescope': 'look through it',
    'storybook': 'read it', 'pinwheel': 'hold it up in the wind', 'airplane': 'make it swoop',
    'rattle': 'shake it', 'tambourine': 'shake it', 'paintbrush': 'paint with it', 'spaceship': 'launch it',
    'magnet': 'pick up nails with it', 'parachute': 'drop it from the wall', 'xylophone': 'tap on it',
    'tractor': 'drive it through the mud', 'zebra': 'let it graze', 'camera': 'take pictures with it'}
CLOTHES = {     # things that get lost as easily: where they are worn
    'hat': 'on {a.his} head', 'scarf': 'around {a.his} neck', 'cap': 'on {a.his} head',
    'cape': 'over {a.his} shoulders', 'ribbon': 'around {a.his} neck', 'bow tie': 'under {a.his} chin',
    'backpack': 'on {a.his} back', 'bandana': 'around {a.his} neck', 'sash': 'around {a.his} waist'}

LEXICON = {     # what a field means until a plot says otherwise; {hue2} is another {hue}
    'hue': 'red|blue|green|yellow|orange|purple|pink|brown|white|black|silver|golden',
    'trait': '''cheerful|kind|curious|clever|gentle|playful|friendly|happy|little|young|lively|quiet|merry|
        bright|funny|busy|sweet|thoughtful|dreamy|polite''',
    'hobby': '''paint pictures|sing songs|draw maps|tell stories|look at the clouds|make up riddles|play tag|
        help in the kitchen|dance in the rain|collect pebbles|pick wildflowers|watch the trains go by|
        roll down hills|play hide-and-seek|hear about pirates|count the stars|jump in puddles|blow bubbles|
        chase butterflies|pretend to be a [knight|sailor|wizard|captain|king|giant|dragon|farmer|doctor]|
        ask questions|do puzzles|bake bread|build little bridges|listen to the wind|skip stones|
        dig for treasure|make crowns of leaves|whistle|tell jokes|swing on the gate|splash in the bath''',
    'fruit': '''apple|pear|peach|plum|cherry|banana|orange|grape|strawberry|blueberry|raspberry|blackberry|mango|
        melon|apricot|fig|coconut|pineapple|kiwi|gooseberry''',
    'snack': '''a slice of [apple|cherry|peach|pumpkin|blueberry|plum|lemon] pie|a bowl of [tomato|pumpkin|noodle|
        onion|pea|potato|carrot|lentil|mushroom] soup|warm bread with [honey|butter|plum jam|cheese|jelly]|
        a plate of [oatmeal|ginger|chocolate|raisin|almond|butter] cookies|a [banana|corn|bran|honey] muffin|
        pancakes with [syrup|jam|berries|cream]|a cup of [cocoa|warm milk|apple juice|mint tea|lemonade]|
        [peanut butter|egg|cucumber|cheese|radish] sandwiches|a dish of [vanilla|strawberry|pistachio|
        caramel] ice cream|a [sticky|sugar|cinnamon] bun|a handful of [nuts|raisins|grapes|dates|popcorn]|
        hot waffles|a crunchy pretzel|a baked potato|rice pudding|a tart with [apricots|figs|cherries]''',
    'meal': '''porridge with [raisins|honey|nuts|cinnamon]|scrambled eggs|toast and [jam|marmalade|jelly]|
        cereal with milk|a boiled egg|yogurt with [blueberries|peaches|kiwi|mango]|rice with beans|
        a [bagel|roll] with butter|two [oranges|bananas|apricots|pears]|a big bowl of oats''',
    'bird': '''robin|sparrow|crow|finch|thrush|blackbird|bluebird|dove|wren|cuckoo|jay|swallow|magpie|lark|
        starling''',
    'tree': 'oak|birch|willow|pine|maple|apple|chestnut|cherry|walnut|fir|poplar|cedar|elm',
    'flower': '''roses|daisies|tulips|violets|lilies|poppies|bluebells|daffodils|buttercups|pansies|dandelions|
        snowdrops|primroses|irises|peonies|geraniums''',
    'bug': 'butterflies|bees|dragonflies|ladybugs|beetles|moths|gnats|bumblebees',
    'pocket': '''a smooth pebble|a bit of string|a pencil stub|an acorn|a penny|a blue feather|a rubber band|
        a snail shell|a piece of chalk|a rusty key|a pine cone|a cork|a glass bead|a postage stamp|a paper clip|
        a lucky coin|a peppermint|a shiny button|a wooden spool|a ticket stub''',
    'day': '''One [sunny|warm|bright|quiet|fine|lovely|mild] [morning|day|afternoon]|One [Monday|Tuesday|
        Wednesday|Thursday|Friday|Saturday|Sunday]|On the first day of [spring|summer|vacation|May|June]|
        One day|One day after lunch|Early one morning''',
    'number': 'three|four|five|six|seven|eight|nine|ten|eleven|twelve',
    'dream': '''a [flying|golden|dancing|giant|sleepy] [whale|pony|boat|carrot|elephant|teapot|castle|goose|
        pancake]|a [river|mountain|house|ship] made of [chocolate|sugar|candy|gingerbread|jelly|feathers]|
        the moon and the stars'''}

ASIDES = (      # colour, told once in a tale at most
    'A {bird} [sang|whistled|called|chirped] in the {tree} tree.', 'The {flower} were in bloom.',
    '[Two|Three|Four|Five|Six|Seven] {bug} [danced|flew|whirled] through the air.',
    'The sun was [warm|bright|golden|shining].', 'The sky was [blue|clear|as blue as paint].',
    '[Small|White|Fluffy|Puffy] clouds [drifted|sailed|floated] [by|across the sky|overhead].',
    'A [soft|gentle|light|cool|warm] breeze [shook|rustled|stirred] the leaves.',
    'A [spider|caterpillar|snail|lizard|worm|beetle] [sat|rested] on a green leaf.',
    'The air smelled of [{flower}|fresh grass|warm bread|mint|hay|rain|wild thyme|lavender|pine].',
    '{a} counted {number} [sparrows|snails|clouds|crows|{flower}|ants|pigeons].',
    '''{a} hummed a [little|merry|silly|happy] tune about a [{bird}|whale|camel|goose|dancing pig|polar bear|
    tiger|kangaroo|hippo|walrus|sleepy cow|giraffe|penguin|purple cat|dolphin|parrot|flea].''')
ASIDES_K = ASIDES + (       # children wear clothes and have pockets
    '{a} wore a {hue2} [sweater|jacket|coat|shirt|vest] and {hue3} [boots|sneakers|shoes|sandals|socks].',
    '''{a} had on {a.his} [striped|spotted|checkered|knitted|woolen|warm] [sweater|socks|shirt|vest|
    mittens|pants].''',
    'In {a.his} pocket {a.he} carried {pocket} and {pocket2}.',
    '{a} had {meal} for breakfast that day.',
    '{a} brushed {a.his} teeth, combed {a.his} hair and [tied {a.his} shoes|buttoned {a.his} coat].')

MOODS = {   # mood: (verbs, how, what one does before speaking)
    '': ('said', '', '{x} [looked up|turned around|stopped|came closer].'),
    'ask': ('asked', '|| with a puzzled look', '{x} [looked up|tilted {x.his} head|blinked|turned around].'),
    'sad': ('said|sobbed|sniffed|sighed', '|| sadly| in a small voice',
            '{x} [looked at the ground|wiped {x.his} eyes|hung {x.his} head|began to cry].'),
    'glad': ('said|cried|laughed|cheered', '|| happily| with a big smile',
             '{x} [smiled|laughed|grinned|beamed|clapped|jumped up and down].'),
    'kind': ('said', '|| gently| kindly| softly| with a warm smile',
             '{x} [smiled|nodded|sat down close by|gave {y} a hug|patted {y} on the back].'),
    'shy': ('said|whispered|mumbled', '|| softly| shyly', '{x} [blushed|took a deep breath|swallowed].'),
    'cross': ('said|grumbled|snapped|growled', '|| with a frown',
              '{x} [frowned|stamped {x.his} foot|crossed {x.his} arms|made a face|shook {x.his} head].'),
    'scared': ('whispered|said|gasped', '|| with wide eyes',
               '{x} [trembled|shivered|stood very still|held {x.his} breath].'),
    'think': ('said', '| slowly| thoughtfully',
              '{x} [thought for a moment|thought about it|scratched {x.his} head|nodded].')}

# -----------------------------------------------------------------------------
# the machine


@functools.cache
def parse(template):
    """Nested lists: a template is a list of options, an option a list of parts, a part text or a template."""
    template = re.sub(r'\s*\n\s*', ' ', re.sub(r'\|\s*\n\s*', '|', template))
    stack = [[[]]]
    for token in re.findall(r'[\[\]|]|[^\[\]|]+', template):
        if token == '[':
            stack.append([[]])
        elif token == '|':
            stack[-1].append([])
        elif token == ']':
            part = stack.pop()
            stack[-1][-1].append(part)
        else:
            stack[-1][-1].append(token)
    return stack[0]


class Who:
    """Someone in a tale: str() is the name; he, him, his, He and His are the pronouns."""

    def __init__(self, name, kind, female, home='', food='', joy=''):
        self.name, self.kind, self.home, self.food, self.joy = name, kind, home, food, joy
        self.he, self.him, self.his = ('she', 'her', 'her') if female else ('he', 'him', 'his')
        self.He, self.His = self.he.capitalize(), self.his.capitalize()

    def __str__(self):
        return self.name


class Words(dict):
    """The words in play. One that is not there yet is drawn from the lexicon, and stays."""

    def __init__(self, fill):
        self.fill, self.lexicon = fill, dict(LEXICON)

    def __missing__(self, name):
        kind = name.rstrip('23')
        others = [self.get(kind), self.get(kind + '2')]
        while (word := self.fill(self.lexicon[kind])) in others:
            pass
        self[name] = word
        return word


class Tale:
    """The text so far and the words in play."""

    def __init__(self, rng):
        self.random, self.text, self.told = rng.random, '', set()
        self.w = Words(self.fill)
        self.world = 'k' if self.random() < 0.6 else 'n'    # children, or animals that talk
        self.airy, self.open = self.random() < 0.5, False   # a new line for each speaker? for the next sentence?

    def pick(self, seq):
        # random() is the one draw that Python promises to keep the same in later versions
        return seq[int(self.random() * len(seq))]

    def take(self, seq, n):
        """n different items, in random order."""
        seq = list(seq)
        return [seq.pop(int(self.random() * len(seq))) for _ in range(n)]

    def row(self, table):
        """A row of a plot's table; 'k' in column 0 is for children only, 'n' for animals only."""
        return self.pick([r for r in table if r[0] in ('', self.world)])[1:]

    def expand(self, options):
        return ''.join([p if type(p) is str else self.expand(p) for p in self.pick(options)])

    def fill(self, template):
        return self.expand(parse(template)).format_map(self.w)

    def let(self, **words):
        for name, template in words.items():
            self.w[name] = self.fill(template)

    def part(self):
        """The next sentence opens a paragraph."""
        self.open = True

    def add(self, text):
        self.text += ('\n\n' if self.open else ' ') * bool(self.text) + text[0].upper() + text[1:]
        self.open = False

    def say(self, *templates):
        self.add(self.fill(self.pick(templates)))

    def maybe(self, *templates, p=0.5):
        if self.random() < p:
            self.say(*templates)

    def talk(self, who, words, mood=''):
        """who ('a', 'b', ...) speaks; the first sentence and the mood choose the verb."""
        x = self.w['x'] = self.w[who]
        self.w['y'] = self.w['b' if who == 'a' else 'a']
        words = self.fill(words).strip()
        words = words[0].upper() + words[1:]
        first, _, rest = re.sub(r'([.!?]) ', r'\1\n', words, count=1).partition('\n')
        verbs, how, beat = MOODS[(mood or 'ask') if first[-1] == '?' else mood]
        verb = self.fill('asked' if first[-1] == '?' else '[cried|called|said]' if words[-1] == '!' and not mood else verbs)
        how, form = self.fill(how), self.random()
        self.open |= self.airy
        if form < 0.2:
            self.add(f'{x} {verb}{how}, "{words}"')
        elif form < 0.35:
            self.add(self.fill(beat) + f' "{words}"')
        else:
            first = first[:-1] + ',' if first[-1] == '.' else first
            self.add(f'"{first}" {verb} {x}{how}.' + (f' "{rest}"' if rest else ''))
        self.open = self.airy

    def aside(self):
        template = self.pick([t for t in (ASIDES_K if self.world == 'k' else ASIDES) if t not in self.told])
        self.told.add(template)
        self.say(template)


def tidy(text):
    """a -> an before a vowel sound, and capitals at the start of sentences."""
    text = re.sub(r'\b([Aa]) (?=[aeiou])(?!\w (?:one|once|use|uni))', r'\1n ', text)
    return re.sub(r'(?<=[.!?] )[a-z]', lambda m: m[0].upper(), text)


# -----------------------------------------------------------------------------
# beats that the plots share


def settle(s, place):
    """Let the tale happen at this place."""
    preposition, _, spots, sights = PLACES[place]
    s.w.update(place=f'the {place}', at=f'{preposition} the {place}')
    s.w.lexicon.update(spot='|'.join(spots), sight='|'.join(sights))


def cast(rng):
    """A tale with its people and place: a is the hero, b and c are others, g is a grown-up."""
    s = Tale(rng)
    boys, girls = (s.take(names, 3) for names in ((BOYS, GIRLS) if s.world == 'k' else (HE_PETS, SHE_PETS)))
    for role, kind in zip('abc', s.take(ANIMALS, 3)):
        female = s.random() < 0.5
        name = (girls if female else boys).pop()
        s.w[role] = (Who(name, 'girl' if female else 'boy', female, s.fill(HOUSE)) if s.world == 'k'
                     else Who(name, kind, female, *ANIMALS[kind]))
    g = s.pick(list(GROWN_UPS)[:8 if s.world == 'k' else 4])
    s.w['g'] = Who(g, 'grown-up', GROWN_UPS[g])
    # how they are first called: his grandma; her friend Pip the fox
    a, b, c = (s.w[role] for role in 'abc')
    s.w['gg'] = f'{a.his} {g[0].lower()}{g[1:]}'
    s.w['bb'] = s.fill(f'{a.his} friend {b}' if s.world == 'k' else f'{a.his} friend {b}[| the {b.kind}]')
    s.w['cc'] = f'a {c.kind} named {c}'
    s.w['likes'] = a.food or s.fill('{snack}')
    s.let(joy=a.joy or '[did a little dance|clapped {a.his} hands|turned a cartwheel|skipped in a circle|jumped for joy]')
    settle(s, s.pick([p for p in PLACES if PLACES[p][1] in ('', s.world)]))
    return s


def opening(s):
    s.say('Once upon a time, there was a {trait} {a.kind} named {a}. {a.He} lived in {a.home}.',
          '{a} was a {trait} {a.kind} who lived in {a.home}.',
          'In {a.home}, there lived a {trait} {a.kind} named {a}.',
          'There once was a {trait} {a.kind} called {a}.',
          'Once there was a {trait} {a.kind}. {a.His} name was {a}.',
          'Not so long ago, a {trait} {a.kind} named {a} lived in {a.home}.',
          'This is the story of {a}, a {trait} {a.kind}.',
          'Everyone knew {a}, the {trait} {a.kind} from {a.home}.')
    s.maybe('{a} [loved|liked] to {hobby}.', '{a} [loved|liked] to {hobby} and to {hobby2}.',
            'Most of all, {a} liked to {hobby}.', '{a} could {hobby} all day long.',
            'What {a} liked best to eat was {likes}.', p=0.4)


def go(s, *templates):
    """Arrive somewhere and look around."""
    s.part()
    s.say(*templates)
    s.maybe('{sight}', p=0.4)
    if s.random() < 0.5:
        s.aside()


def lesson(s, *truths):
    """The moral, in one of several voices; truths are clauses without names or a capital."""
    truth = s.w['truth'] = s.fill(s.pick(truths))
    s.w['Truth'] = truth[0].upper() + truth[1:]
    s.say('{a} [learned|had learned|found out] that {truth}.', 'That day, {a} learned that {truth}.',
          'From then on, {a} knew that {truth}.', '{a} never forgot that {truth}.', 'Now {a} knew that {truth}.',
          'And that is how {a} learned that {truth}.', 'In bed that night, {a} thought, "{Truth}."')


def bye(s):
    """A last sentence of peace, or none."""
    s.maybe('Then {a} and {b} [shared|had] {snack}.', '{a} and {b} went home side by side.',
            '{a} and {b} [laughed|played|sang] together until the sun went down.',
            '{a} and {b} were [good|best|close] friends [ever after|from that day on].',
            'That night, {a} slept [well|soundly] and dreamed of {dream}.', p=0.5)


def thanks(s, who='b'):
    s.w['t'] = s.w[who]
    s.talk('a', '''[Thank you, {t}!|Thank you so much, {t}.|Oh, thank you, {t}!] [You are a good friend.|
           You helped me so much.|I could not have done it without you.|I am so lucky to have you.|]''', 'glad')


# -----------------------------------------------------------------------------
# the plots, each under its table of rows


def lost(s):
    """A treasure is lost, and found in the place that the helper knows."""
    if s.random() < 0.75:
        toy = s.pick(list(TOYS))
        s.let(toy=toy, use=TOYS[toy], fond='{a} loved to {use}.', ask='Do you want to {use} with me?',
              fun='{b} [said yes|was glad], and they had [a wonderful|a lovely|a grand|a fine|lots of] [time|fun].')
        s.w['fun'] = s.w['fun'].replace('lots of time', 'lots of fun').replace('fine fun', 'fine time').replace(
            'grand fun', 'grand time').replace('a lovely fun', 'lovely fun').replace('a wonderful fun', 'great fun')
    else:
        toy = s.pick(list(CLOTHES))
        s.let(toy=toy, fond='{a} always wore it ' + CLOTHES[toy] + '.', ask='Do you want to try it on?',
              fun='{b} tried it on and [looked very fine|spun around|made a funny face].')
    s.let(look='shiny|little|new|old|pretty|striped|spotted|lovely')
    opening(s)
    s.say('{a.He} had a {look} {hue} {toy} from {gg}. {fond}', '{a.His} favorite thing was a {look} {hue} {toy}. {fond}',
          'For {a.his} birthday, {a} got a {look} {hue} {toy}. {fond}')
    go(s, '{day}, {a} took the {toy} to {place}.', '{day}, {a} went to {place} with the {toy}.')
    s.say('''{a} stopped to [watch the ants|smell the {flower}|look at a {bird}|rest in the shade].
          When {a.he} wanted to go on, the {hue} {toy} was gone.''',
          'After a while, {a} [took a nap|fell asleep]. When {a.he} woke up, the {hue} {toy} was gone.')
    s.talk('a', '[Oh no!|Oh dear!] Where is my {toy}?', 'sad')
    s.say('{a} looked {spot2} and {spot3}, but it was not there.',
          '{a.He} looked {spot2}. {a.He} looked {spot3}. There was no {toy}.',
          'First {a.he} looked {spot2}. Then {a.he} looked {spot3}. It was in neither place.')
    s.part()
    s.say('Just then, {bb} came by.', 'Soon {bb} came along.', '{bb} heard {a} and came to help.')
    s.talk('b', '[What is wrong, {a}?|Why are you so sad, {a}?|What are you looking for?]', 'kind')
    s.talk('a', 'I lost my {hue} {toy}. [I looked everywhere.|I cannot find it.|I miss it so much.]', 'sad')
    way = s.pick(('saw', 'think', 'sound'))
    if way == 'saw':
        s.talk('b', '[Wait!|Do not cry.|Cheer up!] I saw something {hue} {spot}.', 'kind')
        s.say('{b} led the way and {a} followed.', 'They [ran|hurried|went] there at once.')
        s.say('There, {spot}, [lay|was] the {hue} {toy}!', 'And yes! {spot} they found the {hue} {toy}.')
    elif way == 'think':
        s.talk('b', '[Let us think.|Think hard.] Where were you [before that|this morning|at first]?', 'think')
        s.talk('a', '[Well, I|I think I|Hmm, I] [ate {fruit} jam|played|sat|took a rest] {spot}.', 'think')
        s.say('So they went back. {spot}, they saw something {hue}. It was the {toy}!',
              'They walked all the way back, and {spot} lay the {hue} {toy}.')
    else:
        s.let(finder='[kitten|puppy|baby {bird}|bunny|duckling]' if s.world == 'k' else
              '[ladybug|caterpillar|beetle|cricket]')
        s.talk('b', '[I will help you look.|Two can look better than one.|We will find it together.]', 'kind')
        s.say('{spot}, they heard a tiny sound. A small {finder} was hiding there, right next to the {hue} {toy}!',
              'They looked {spot}. There sat a small {finder}, and beside it was the {hue} {toy}!')
        s.say('''The {finder} was [lost|all alone|cold], too. {a} [stroked it gently|made it a bed of leaves], and
              [it fell asleep|it was happy].''')
    thanks(s)
    if s.random() < 0.5:
        s.talk('a', '{ask}', 'glad')
        s.say('{fun}')
    else:
        s.say('{a} held the {toy} tight all the way home.', '{a} hugged {b} and then the {toy}.')
    lesson(s, 'looking for something is easier with a friend', 'it is good to ask for help',
           'two pairs of eyes are better than one', 'it helps to stay calm and think')
    bye(s)


def share(s):
    """One has what the other wants: grabbing fails, sharing works."""
    toy = s.pick([t for t in TOYS if t not in ('storybook', 'camera', 'teddy bear')])
    s.let(toy=toy, use=TOYS[toy], look='shiny|new|pretty|big|lovely|fine')
    opening(s)
    go(s, '{day}, {a} met {bb} {at}. {b} had a {look} {hue} {toy}.',
       '{day}, {bb} came to {place} with a {look} {hue} {toy}. {a} was there, too.')
    s.say('{a} wanted to {use}, too. {a.He} wanted it very much.', '{a} had never seen such a {look} {toy}.',
          '{a} could not stop looking at it.')
    s.talk('a', '[Please, may I have a turn?|Can I {use}, too?|May I play with your {toy}?]', 'shy')
    way = s.pick(('alone', 'grab', 'swap'))
    if way == 'alone':
        s.talk('b', 'No, it is mine. [I just got it.|You might break it.|I want to play alone.]', 'cross')
        s.say('{a} went away and sat down {spot}.', '{a} walked off with {a.his} head down and sat {spot}.')
        s.part()
        s.say('{b} played with the {toy}, but it was [no fun|dull|boring] alone. Nobody [laughed|cheered|clapped].',
              'At first {b} was glad. But soon {b} felt [lonely|bored], because there was nobody to play with.')
        s.say('So {b} went to {a} and held out the {hue} {toy}.', 'Then {b} looked for {a} and found {a.him} {spot}.')
        s.talk('b', 'I am sorry, {a}. [It is more fun with you.|I want us to play together.] You go first.', 'kind')
        s.talk('a', '[Thank you, {b}!|Really? Thank you, {b}!]', 'glad')
        s.w['a'], s.w['b'] = s.w['b'], s.w['a']     # it is the owner who learns
        truths = ('a toy is more fun when it is shared', 'sharing makes two people happy',
                  'playing alone is not much fun')
    elif way == 'grab':
        s.talk('b', '[In a little while.|Soon.|Wait a minute.] I want to [try it first|play a bit more].')
        s.say('But {a} did not want to wait. {a.He} [grabbed|pulled at|snatched] the {toy}. Crack! It [broke|came apart].')
        s.say('{b} began to cry. {a} felt [hot|awful|terrible|very bad] inside.')
        s.talk('a', 'I am so sorry, {b}. I should have waited. [I will help you mend it.|Let me mend it.]', 'sad')
        s.say('They [carried|took] it to {gg}, who had [glue|tape|glue and string|a small hammer]. {a} held the pieces, '
              'and soon the {toy} was whole again.')
        s.talk('b', '[Now you may have a turn.|Now it is your turn.|Here, now you try.] [I know you will be careful.|]', 'kind')
        s.say('{a} was very careful this time. Then {a} gave the {toy} back.')
        truths = ('it is better to wait for a turn', 'grabbing only breaks things', 'it is good to say sorry and help')
    else:
        s.let(toy2='[box of crayons|bag of marbles|set of blocks|scooter|drum|puppet|kite|toy snake|top]')
        if s.w['toy2'] == toy:
            s.w['toy2'] = 'hoop' if toy != 'hoop' else 'kite'
        s.talk('b', '[Hmm.|Well.|I am not sure.] What if you do not give it back?', 'think')
        s.say('{a} ran home and came back with a {toy2}.')
        s.talk('a', 'You can play with my {toy2}, and I can play with your {toy}. Later we will trade back.', 'kind')
        s.say('{b} liked that. {a} got to {use}, and {b} played with the {toy2}.')
        s.say('When the sun was low, {a} gave back the {toy} and {b} gave back the {toy2}.')
        s.talk('b', '[That was fun!|That was a good idea, {a}!] Let us do it again tomorrow.', 'glad')
        truths = ('trading is a kind of sharing', 'sharing makes two people happy', 'it is good to give something, too')
    s.maybe('They took turns until it was time to go home.', 'They played until [supper|the sun went down|the stars came out].')
    lesson(s, *truths)


FEARS = (   # world, what, how it shows, what the hero says, what the helper says, the deed, after that
    ('', 'the dark', 'At bedtime, the shadows on the wall looked like [giants|monsters|wolves|ghosts].',
     'There is something in the corner.', 'Let us go and see what it is.',
     '{h} lit a candle, and they tiptoed over. It was only [a coat on a hook|a heap of clothes|a broom with a hat on it].',
     'Now {a} could lie in the dark and listen to the [crickets|wind|clock|owls].'),
    ('', 'thunder', 'One night there was a storm, and the thunder went boom.', 'The sky is angry with me.',
     'The sky is only playing its drums. Let us count until the next boom.',
     'They counted to five, then to nine, then to twenty. The storm was moving away.',
     'At the very last boom, {a} even clapped.'),
    ('k', 'the tall slide', 'All the other children went down the slide, but {a} only stood below and watched.',
     'It is so high up there.', 'Take one step at a time. I will wait for you at the bottom.',
     '{a} climbed one step, then two, then ten. {a.He} sat down, shut {a.his} eyes and let go. Whoosh!',
     'It felt like flying, and {a} went down {number} more times.'),
    ('', 'deep water', 'The others splashed in the lake, but {a} stayed on the shore with dry feet.',
     'What if I sink?', 'Hold on to me. We will only go in up to the knees.',
     'First they went in up to the knees, and then up to the tummy. {h} held {a} until {a.he} could float.',
     'Soon {a} was kicking and splashing like a [fish|seal|dolphin].'),
    ('k', 'the big dog next door', 'It barked whenever {a} walked past the gate.', 'It wants to bite me.',
     'I think it wants to say hello. Let it smell your hand.',
     '{a} held out {a.his} hand. The dog sniffed, and then it licked {a.him} from thumb to elbow.',
     'From that day on, {a} [threw a stick for the dog|stopped to pet the dog] every morning.'),
    ('', 'the old bridge', 'The bridge shook at every step, and the river was loud below.', 'It is going to fall down.',
     'Look at me and not at the water. Then take one small step.',
     '{a} looked only at {h}. One step, two steps, three steps, and {a.he} was on the other side.',
     'On the way back, {a} [even stopped in the middle to wave at the fish|crossed it all alone].'),
    ('k', 'the dentist', 'But one tooth hurt, and {a} had to go.', 'Will it hurt a lot?',
     'You may squeeze my hand as hard as you like.',
     'The dentist had a soft voice and a chair that went up and down. {a} squeezed, and then it was all done.',
     '{a} got a [sticker|new toothbrush|balloon], and the tooth was as good as new.'),
    ('', 'singing for others', 'Everyone was going to sing a song at the [spring|harvest|winter] party.',
     'They will all look at me.', 'Then look only at me, and sing it to me.',
     '{a} stood on the stage with shaky knees. {a.He} looked at {h} and sang. The song got louder with every line.',
     'Everyone clapped, and {a} took a deep bow.'),
    ('k', 'the cellar', '{a} had to fetch a jar of [pickles|peaches|jam] from down there, but something growled.',
     'I think a monster lives in the cellar.', 'I can hear it, too. We will take a flashlight and look.',
     'They went down the steps. The thing that growled was only the [furnace|washing machine|old icebox|water pump].',
     '{a} patted the "monster" and carried the jar upstairs.'),
    ('', 'the cave', 'Whenever {a} cried out near the cave, something cried back.', 'Somebody in there shouts at me.',
     'Maybe it just says what you say. Try something nice.',
     '"Hello, friend!" called {a}. "Friend, friend," the cave called back.',
     'It was only an echo, and {a} sang a song with it.'),
    ('', 'bees', 'Whenever a bee buzzed by, {a} ran away.', 'It will sting me.',
     'It is only looking for flowers. Stand as still as a tree.',
     'A bee landed on {a}. It cleaned its legs, hummed a bit and flew off to the {flower}.',
     'The next day, {a} planted flowers just for the bees.'),
    ('k', 'the first day of school', '{a} put on {a.his} new shoes very slowly that morning.', 'What if nobody likes me?',
     'Somebody else is thinking the very same thing. Find that child and say hello.',
     'By the classroom window stood {cc}, all alone. "Hello," said {a}, and {c} smiled.',
     'They shared a desk, a ruler and a pack of [crayons|markers|pencils].'))


def fear(s):
    """Something scary is looked at with a helper, and is not so bad."""
    s.w['h'], s.w['hh'] = (s.w['b'], s.w['bb']) if s.random() < 0.5 else (s.w['g'], s.w['gg'])
    s.w['trait'] = s.pick(items('shy|quiet|little|young|careful|gentle|kind|sweet'))
    what, shows, worry, tip, deed, after = s.row(FEARS)
    s.w['fear'] = what
    opening(s)
    s.say('But {a} was afraid of {fear}.', 'There was only one thing {a} was afraid of, and that was {fear}.',
          '{a} was scared of {fear}.')
    s.say(shows)
    s.maybe('{a} [shook like a leaf|felt cold all over|wanted to hide under a blanket|had a funny feeling in {a.his} tummy].')
    s.part()
    s.say('{hh} [saw it|noticed].', '{hh} came and sat beside {a}.', 'So {a} went to {hh}.')
    s.talk('h', '[What is the matter, {a}?|Are you all right?|What is it, {a}?]', 'kind')
    s.talk('a', worry, 'scared')
    s.maybe('{h} did not laugh.', '{h} listened and did not laugh.', '{h} took {a} seriously.', p=0.4)
    s.talk('h', tip, 'kind')
    s.maybe('{a} was still afraid, but {a.he} nodded.', '{a} took a [deep|big|long] breath.', '{a} thought about it for a while.')
    s.part()
    s.say(deed)
    s.talk('a', '''[I did it!|That was not so bad!|It is not scary at all!|I am not afraid anymore!]
           [Thank you, {h}.|You were right, {h}.]''', 'glad')
    s.talk('h', '[I knew you could do it.|You were very brave.|I am proud of you.|Being brave is hard, and you did it.]', 'kind')
    s.say(after)
    lesson(s, 'being brave means to try even when you are afraid', 'scary things look smaller up close',
           'a friend makes scary things less scary', 'it helps to talk about a fear')


RULES = (   # world, the rule, how it is broken, the question, the confession, how it is mended
    ('', 'Please do not touch the cake. It is for the party.',
     'The cake smelled so sweet. {a} took one tiny bite. Then {a.he} took another. Soon there was a big hole in it.',
     'Who ate the cake?', 'I ate it.', 'They baked another cake, and {a} did all the stirring.'),
    ('k', 'Please do not play ball in the house.',
     'But it was raining, and {a} threw the ball just once. Crash! The [vase|lamp|blue plate|teapot] fell and broke.',
     'What was that noise?', 'I threw my ball and something broke.',
     'They swept up the pieces and glued them together, one by one.'),
    ('', 'Please close the gate when you go out.',
     '{a} was in a hurry and left it open. Soon the [hens|geese|sheep|goats|ducks] were all over the road.',
     'Who left the gate open?', 'I forgot to close it.',
     'They ran up and down until every one was back. Then {a} closed the gate and checked it twice.'),
    ('', 'Please do not pick the {flower}. They are for the fair.',
     'But they were so pretty that {a} picked one, and two more. Soon there were only stems left.',
     'Where are all the {flower}?', 'I picked them.',
     '{a} put the {flower} in a jar of water, and then helped to plant new ones.'),
    ('k', 'Please do not draw on the wall.',
     'But the wall was so big and so white. {a} drew a {hue} [dragon|horse|castle|ship|rainbow|giraffe] on it.',
     'How did that get on the wall?', 'I drew it.',
     '{a} scrubbed the wall with soap and a sponge. Then they hung up a big sheet of paper for drawing.'),
    ('', 'Please do not open the box on the shelf. It is a surprise.',
     '{a} only wanted to peek. But when the lid came off, a hundred beads rolled all over the floor.',
     'Why are there beads on the floor?', 'I opened the box.',
     '{a} crawled under every chair until all the beads were back. Then they made a necklace together.'),
    ('', 'Please stay off the floor. I have just washed it.',
     '{a} wanted a {fruit} from the bowl. {a.He} ran in and out again, and left {number} muddy tracks.',
     'Who walked on my clean floor?', 'I did, because I wanted a {fruit}.',
     '{a} filled a pail, took the mop and washed the floor until it shone.'),
    ('', 'Please do not ring the big bell. It is only for a fire.',
     'But {a} wanted to hear it just once. Ding, dong! All the neighbors came running with buckets of water.',
     'Where is the fire?', 'There is no fire. I rang the bell for fun.',
     '{a} went to every neighbor to say sorry, and helped to carry the buckets home.'),
    ('k', 'Please do not play with my watch.',
     'But it ticked so nicely. {a} leaned over the sink to hear it better. Plop! It fell into the soapy water.',
     'Have you seen my watch?', 'I dropped it in the sink.',
     'They dried the watch by the stove. {a} washed the dishes for a week to help pay for a new strap.'),
    ('', 'Please do not eat the berries. I need them for jam.',
     '{a} ate only one. But it was so juicy that {a.he} ate the whole [basket|bowl|bucket], and {a.his} mouth turned purple.',
     'Where did my berries go?', 'I ate them all.',
     '{a} took the empty basket to the bushes and picked until it was full again.'))


def rule(s):
    """A rule is broken; owning up makes it right."""
    rule, breaks, question, confess, mend = s.row(RULES)
    opening(s)
    go(s, '{day}, {gg} had to go out for a while.', '{day}, {gg} was very busy.', '{day}, {a} was at home with {gg}.')
    s.talk('g', rule)
    s.talk('a', '[I will not forget.|Yes, {g}.|All right.|I promise.]')
    s.part()
    s.say(breaks)
    s.say('{a} felt [sick|awful|bad|hot and cold]. What now?', '{a} stood there with wide eyes.', '{a.His} heart [beat fast|sank].',
          '"Oh no," whispered {a}.')
    way = s.pick(('own', 'hide', 'blame'))
    if way == 'hide':
        s.say('{a} hid [under the bed|behind the curtain|in the closet|behind the stove|under the table] and hoped that '
              'nobody would notice.')
    s.talk('g', question, 'ask')
    if way == 'blame':
        s.talk('a', '[Maybe it was {b}.|I think it was {b}.|The wind did it.|It was a {bird}.]', 'shy')
        s.say('But that was not true, and {a} had a [lump in {a.his} throat|stone in {a.his} tummy].')
        s.talk('a', 'No, that was a lie. {it} I am sorry.'.replace('{it}', confess), 'sad')
    else:
        s.maybe('It was very quiet.', '{a} wanted to run away, but {a.he} did not.', '{a} swallowed hard.')
        s.talk('a', f'[It was me.|I have to tell you something.] {confess} I am [so|very] sorry.', 'sad')
    s.talk('g', '''[I am not happy about it, but|I am a little sad. Still,] [I am glad that you told me|thank you for telling me
           the truth|it was brave to tell me]. [Let us fix it together.|What can we do about it?|Come, we will make it right.]''', 'kind')
    s.part()
    s.say(mend)
    s.say('When it was done, {g} gave {a} a [big|warm|long] hug.', 'Then {g} smiled again, and so did {a}.',
          'It was hard work, but {a} felt [light|much better|good] again.')
    lesson(s, 'telling the truth makes a heavy heart light', 'rules have a reason', 'a mistake can be mended if you own up',
           'it is best to tell the truth right away')


RESCUES = (   # the animal, its trouble, its sound, the plan, the act, what comes of it
    ('baby {bird}', 'It had fallen out of its nest in the {tree} tree.', 'Cheep, cheep!', 'We need a [ladder|long ladder].',
     '{b} held the ladder. {a} climbed up with the bird in a soft [sock|cap|cloth] and set it back in the nest.',
     'The next morning, the mother {bird} sang her best song for {a}.'),
    ('kitten', 'It sat on a branch of the {tree} tree and could not get down.', 'Mew, mew!', 'Let us lean a plank on the branch.',
     'They leaned a plank on the branch and put a dish of milk at the bottom. Step by step, the kitten came down.',
     'After that, the kitten followed {a} everywhere.'),
    ('fish', 'It lay in a puddle, and the puddle was drying up.', 'Flip, flop!', 'We must take it to deep water, and fast.',
     '{b} brought a pail. {a} scooped up the fish and they let it go in the deep water.',
     'The fish jumped three times, as if to say thank you.'),
    ('bumblebee', 'It sat on the ground and was too tired to fly.', 'Bzz, bzz.', 'It needs something sweet.',
     '{b} mixed sugar and water on a spoon. The bumblebee drank it all, shook its wings and flew up.',
     'It made a loop over {a} and buzzed away to the {flower}.'),
    ('puppy', 'It had a thorn in its paw.', 'Yip, yip!', 'I will hold it, and you pull out the thorn.',
     '{b} held the puppy and {a} pulled. Out came the thorn! They washed the paw and tied a bandage around it.',
     'The puppy licked {a} on the nose and wagged its whole body.'),
    ('snail', 'It was crossing the road, and a wagon was coming.', 'It made no sound at all.', 'Quick, we must carry it across.',
     '{b} waved at the wagon until it stopped. {a} picked up the snail and set it down in the grass.',
     'The snail put out its horns and crept under a cool leaf.'),
    ('butterfly', 'It was stuck in a spider web.', 'Its wings made no sound.', 'Let us use a thin stem, so that we do not hurt it.',
     'With a thin stem, {a} loosened the threads, one after the other, while {b} held the web still.',
     'The butterfly sat on {a} for a moment, and then it was off.'),
    ('lamb', 'Its wool was caught in a bramble bush.', 'Baa, baa!', 'I will bend the branches, and you free the wool.',
     '{b} bent the thorny branches and {a} untangled the wool, until the lamb was free.',
     'The farmer was so glad that {a} and {b} got a [warm scarf|ball of yarn|jug of milk|round cheese].'),
    ('duckling', 'It had slipped into a deep hole and could not climb out.', 'Peep, peep!', 'We can make a ramp out of [a board|sticks].',
     'They pushed the ramp into the hole. The duckling waddled up, one small step at a time.',
     'Its mother came quacking with {number} more ducklings behind her.'),
    ('beetle', 'It lay on its back and kicked its legs in the air.', 'Crick, crick.', 'Give it something to hold on to.',
     '{a} held out a blade of grass. The beetle grabbed it, and {a} turned it over.',
     'The beetle shone green and blue as it marched away.'),
    ('baby turtle', 'It was going the wrong way, away from the water.', 'Its tiny feet went pat, pat, pat.', 'It must be thirsty. Let us show it the way.',
     'They drew a path in the sand with a stick and walked in front. The baby turtle followed them to the water.',
     'It swam a small circle and popped up its head to look at them.'),
    ('toad', 'It had fallen into a tall milk can.', 'Croak, croak!', 'Maybe it can climb up a branch.',
     '{b} found a rough branch and {a} put it into the can. The toad climbed up and sat on the rim.',
     'From then on, the toad ate the bugs in the lettuce, and the lettuce grew big.'))


def rescue(s):
    """A small animal in need is helped."""
    small, trouble, sound, plan, act, after = s.pick(RESCUES)
    s.let(small=small)
    opening(s)
    go(s, '{day}, {a} and {bb} went to {place}.', '{day}, {a} was {at} with {bb}.', '{day}, {a} and {bb} played {at}.')
    s.part()
    s.say('Suddenly {a} stopped.', 'Then {a} [heard|saw] something.', 'After a while, {a} noticed something small.')
    s.say(sound if ' ' in sound.strip('!.') and not sound[-1] == '!' and len(sound) > 12 else f'"{sound}"')
    s.say('{spot}, {a} found a {small}. ' + trouble, 'It was a {small}, right {spot}. ' + trouble)
    s.talk('a', '[Oh, you poor thing!|Poor little {small}!|Look, {b}, it needs help!|We have to do something!]', 'sad')
    if s.random() < 0.3:
        s.talk('b', '[We will be late for lunch.|Are you sure?|Maybe somebody else will help.]', 'think')
        s.talk('a', '[It is so small, and we are big.|We cannot leave it here.|If we go, who will help?]', 'kind')
    s.talk('b', f'[You are right.|Yes.|I have an idea.] {plan}', 'think')
    s.say('[Do not be afraid|We will help you|Stay calm, little one]'.join(('"', ',"')) + ' {a} told the {small} [softly|gently].',
          '{a} moved slowly, so that the {small} would not be scared.', '{a} talked to the {small} in a soft voice.')
    s.part()
    s.say(act)
    s.talk('b', '[We did it!|You did it, {a}!|It worked!]', 'glad')
    s.say('{a} {joy}.', '{a} felt warm inside.', '{a} was so happy that {a.he} {joy}.')
    s.say(after)
    thanks(s)
    lesson(s, 'even small ones need help sometimes', 'a little kindness can be a big thing', 'it is good to stop and help',
           'gentle hands can do great things')


BUILDS = (   # world, place or '', the thing, what of, how it goes, what breaks it, the better way
    ('k', 'beach', 'sandcastle', 'wet sand, shells and a feather for a flag', 'They filled the pail and turned it over, again and again.',
     'A big wave rolled in and washed half of it away.', 'build a wall and dig a ditch for the water'),
    ('k', 'backyard', 'tree house', 'boards, nails and an old rope', 'They sawed and hammered until their arms were tired.',
     'Crack! The floor gave way and fell into the bushes.', 'put two thick beams under the floor'),
    ('', 'riverbank', 'raft', 'logs, string and a sheet for a sail', 'They tied the logs side by side.',
     'When they pushed it into the water, the knots came loose and the logs floated off.', 'tie every knot twice'),
    ('', 'hill', 'windmill', 'sticks, paper and one long nail', 'They cut four sails and painted them {hue}.',
     'A strong wind came and tore off the sails.', 'make the sails out of cloth'),
    ('', 'forest', 'hut', 'branches, bark and moss', 'They stacked branch on branch and stuffed the gaps with moss.',
     'In the night it rained, and the roof fell in.', 'make the roof steep, so that the rain runs off'),
    ('', 'orchard', 'scarecrow', 'straw, a broom and an old coat', 'They stuffed the coat and drew a face on a sack.',
     'A goat came by and ate the straw, so the scarecrow fell flat.', 'stuff it with rags, since goats do not eat rags'),
    ('k', 'park', 'snowman', 'three big balls of snow, a carrot and two lumps of coal', 'They rolled the snow until they were out of breath.',
     'The sun came out, and the head slid off.', 'build it in the shade and pack the snow hard'),
    ('', 'meadow', 'wagon', 'a crate, four wheels and a rope', 'They screwed on the wheels and painted the crate {hue}.',
     'On the first ride, a wheel came off and rolled into the ditch.', 'put a peg through the end of each axle'),
    ('k', 'playground', 'tower', 'blocks, boxes and tin cans', 'It grew as high as their knees, and then as high as their chins.',
     'A soccer ball hit it, and down it came with a clatter.', 'make it wide at the bottom and move it into the corner'),
    ('', 'lake', 'little bridge', 'flat stones and planks', 'They laid the planks from stone to stone.',
     'When {a} stepped on it, a plank tipped up and {a} sat in the water.', 'put a heavy rock on each end'),
    ('', 'farm', 'birdhouse', 'a plank, some screws and a tin roof', 'They measured, sawed and sanded, and painted it {hue}.',
     'It hung on a thin thread, and the wind threw it down.', 'hang it up with strong wire'))


def build(s):
    """Something is built, breaks, and is built better."""
    place, thing, parts, work, disaster, better = s.row(BUILDS)
    if place:
        settle(s, place)
    s.w['thing'] = thing
    opening(s)
    s.say('{a} had a plan. {a.He} wanted to build a {thing}.', 'For a long time, {a} had wanted to build a {thing}.',
          'More than anything, {a} wanted to build a real {thing}.')
    go(s, '{day}, {a} asked {bb} to come to {place}.', '{day}, {a} and {bb} met {at}.')
    s.talk('a', f'[Will you help me build a {{thing}}?|Let us build a {{thing}}!] We [need|can use] {parts}.', 'glad')
    s.talk('b', '[I would love to!|What a good idea!|Yes! I can carry things.|Let us start right now!]', 'glad')
    s.part()
    s.say(work)
    s.say('At last, the {thing} was [ready|finished|done]. It looked [grand|lovely|splendid|very fine].',
          'By [noon|lunch|evening], there it stood, the finest {thing} [in the world|far and wide|of all].')
    s.say('But then something happened. ' + disaster, 'But oh dear! ' + disaster)
    blame = s.random() < 0.35
    if blame:
        s.talk('a', '[It is your fault, {b}!|You did it all wrong, {b}!]', 'cross')
        s.say('{b} turned away and said nothing. {a} saw it and felt sorry.')
        s.talk('a', 'I did not mean that. I was just [sad|upset]. [Please stay.|Can you forgive me?]', 'sad')
        s.talk('b', '[It is all right.|I am sad about it, too.] Let us try again, and this time we {better}.'.replace('{better}', better), 'kind')
    else:
        s.talk('a', '[All our work is gone.|Now it is all spoiled.|I want to give up.]', 'sad')
        s.talk('b', f'[Do not give up.|Cheer up, {{a}}.|We are not done yet.] [Next time we|This time we|We can] {better}.'
               .replace('Next time we]', ']'), 'kind')
    s.part()
    s.say('So they [began again|started over|went back to work]. It took [all afternoon|a long time|two more days].')
    s.say('This time the {thing} [held|stayed up|stayed whole], and it was even better than before.',
          'The new {thing} was stronger than the first, and it [held|did not break].')
    thanks(s)
    lesson(s, 'a thing that breaks can be built again, and better', 'giving up is not the only way',
           *(('angry words can hurt a friend',) if blame else ('a mistake can be a good teacher',)))
    bye(s)


CONTESTS = (   # world, the contest, how one trains, how it goes, what the winner did, the thing to say
    ('', 'race', 'ran up and down the road every morning', 'They ran past the mill, over the bridge and back.',
     '{b} was one step ahead at the finish line.', 'You ran like the wind'),
    ('', 'pie contest', 'baked a {fruit} pie every day', 'The judge tasted a bit of each pie and licked the spoon.',
     'The judge gave the ribbon to {b}.', 'Your pie smells like heaven'),
    ('', 'singing contest', 'sang to the {bug} and the trees', 'Each of them sang three songs, and the crowd hummed along.',
     'The crowd clapped longest for {b}.', 'Your song gave me goose bumps'),
    ('k', 'drawing contest', 'drew {number} horses a day', 'All the pictures hung on a long line with clothespins.',
     'The teacher put the golden star on the picture by {b}.', 'Your picture looks so real'),
    ('', 'jumping contest', 'hopped over logs, stones and puddles', 'They jumped over the ditch, one after the other.',
     '{b} landed a whole foot farther.', 'You flew like a bird'),
    ('k', 'kite contest', 'studied the wind with a wet finger', 'The kites rose over the roofs, higher and higher.',
     'The kite of {b} went up until it was a tiny dot.', 'I have never seen a kite go so high'),
    ('', 'pumpkin contest', 'watered a pumpkin and read stories to it', 'The pumpkins were rolled onto the big scale.',
     'The pumpkin of {b} was heavier by just one seed.', 'That pumpkin is as big as a coach'),
    ('', 'swimming race', 'paddled from shore to shore', 'They dived in and swam around the buoy.',
     '{b} touched the dock first.', 'You swim like a fish'),
    ('k', 'spelling contest', 'spelled every word on the cereal box', 'The words got longer and longer.',
     '{b} knew how to spell "rhinoceros", and {a} did not.', 'You know so many words'),
    ('', 'dancing contest', 'twirled around the kitchen table', 'The fiddle played faster and faster.',
     '{b} was still dancing when all the others had to sit down.', 'You have springs in your feet'))


def contest(s):
    """A contest is lost with grace, or given up to help."""
    what, trains, course, winner, praise = s.row(CONTESTS)
    s.w['contest'] = what
    s.let(prize='[a golden cup|a blue ribbon|a silver medal|a big trophy|a basket of {snack3}]'.replace(
        'a basket of {snack3}', 'a box of candy'))
    opening(s)
    s.say('There was going to be a {contest}, and the prize was {prize}. {a} wanted to win it.',
          'Every year there was a {contest}. This year, {a} wanted to win {prize}.')
    s.say(f'For weeks, {{a.he}} {trains}.', f'To get ready, {{a}} {trains}.')
    s.maybe('{gg} [helped|cheered {a.him} on|watched and clapped].', p=0.3)
    go(s, 'At last the day of the {contest} came. {bb} was in it, too.', 'Then the big day came. {bb} was in the {contest}, too.')
    s.talk('b', '[Good luck, {a}!|May the best one win!|I hope you do well, {a}!]', 'glad')
    s.talk('a', '[Good luck to you, too!|And you, {b}!|Thanks. I will try my best.]')
    s.part()
    if what in ('race', 'swimming race') and s.random() < 0.6:
        s.say('{a} was in front, and the finish was near. Then {b} cried out. {b.He} had [hurt {b.his} leg|a cramp in {b.his} foot].')
        s.say('{a} looked at the finish. {a} looked at {b}. Then {a} turned back.')
        s.talk('a', '[Lean on me.|Hold on to me.|I will help you.] [The prize is not so important.|We can finish together.]', 'kind')
        s.say('They came in last, side by side, and everyone stood up and cheered.')
        s.talk('b', 'You could have won {prize}. Why did you stop?', 'ask')
        s.talk('a', '[Because you are my friend.|A friend is better than {prize}.|You needed me more than I needed {prize}.]', 'glad')
        lesson(s, 'a friend is worth more than a prize', 'helping can feel better than winning')
        return
    s.say(course)
    s.say(f'{{a}} did well. But in the end, {winner}'.replace('end, The', 'end, the'))
    s.say('So {b} got {prize}. {a} [had a lump in {a.his} throat|felt like crying|kicked a small stone|was very quiet].')
    way = s.pick(('grace', 'sulk', 'learn'))
    if way == 'sulk':
        s.talk('a', '[It is not fair.|I worked so hard.|I never want to do this again.]', 'cross')
        s.talk('g', '[You did your best, and that is what counts.|I saw how hard you tried.] [How do you think {b} feels?|'
               'Would you like to cheer for {b}, too?|]', 'kind')
        s.say('{a} saw that {b} was standing there all alone with {prize}. So {a} went over.')
    else:
        s.say('But then {a} saw how happy {b} was, and {a.he} went over and [shook hands|smiled].'.replace(
            'shook hands', 'shook hands' if s.world == 'k' else 'bowed'))
    s.talk('a', f'[Well done, {{b}}!|You were great, {{b}}!] {praise}.', 'glad')
    if way == 'learn':
        s.talk('b', 'Thank you! You were very good, too. [Shall we train together?|Do you want to know how I do it?]', 'kind')
        s.say('From then on, they trained together, and next year {a} [came in first|won]. Who cheered the loudest? It was {b}!')
    else:
        s.talk('b', '''Thank you, {a}! [You made me try harder than ever.|It was so close.] [Come, let us share
               {snack}.|Will you celebrate with me?]''', 'glad')
        s.say('So they celebrated together, and {a} was not sad anymore.', 'They sat in the grass and talked until {a} laughed again.')
    lesson(s, 'you can lose and still be happy for a friend', 'doing your best is what counts', 'a good loser makes good friends')


PLANS = (   # world, the plan, what they get ready, the weather, the idea, how that goes
    ('', 'have a picnic', 'packed {snack} and {snack2}', 'big drops of rain began to fall', 'have our picnic on the floor',
     'They spread a blanket under the table, and it tasted even better than outside'),
    ('', 'watch the stars', 'found a blanket and a thermos of hot cocoa', 'thick clouds covered the whole sky',
     'make our own stars', 'They cut stars out of paper, hung them on threads and lay down under them'),
    ('k', 'sleep in a tent', 'rolled up a pillow and a sleeping bag', 'thunder rumbled and the tent blew over',
     'build a tent in the living room', 'They hung sheets over the chairs and told stories by flashlight'),
    ('', 'go sailing', 'polished the oars and patched the sail', 'a fog came up, as white and thick as milk',
     'sail on a dry sea', 'A bench was the ship, a broom was the oar, and they met {number} pirates and a whale'),
    ('', 'go sledding', 'waxed the sled', 'the snow turned to slush and then to water', 'float boats instead',
     'They folded boats out of newspaper and raced them down the street in the melted snow'),
    ('', 'see the parade', 'made flags and streamers', 'hail as big as peas came down', 'march in here',
     'They banged on pots, blew on combs and marched up and down the stairs'),
    ('', 'fly kites', 'tied long tails to two kites', 'the wind dropped and not a leaf moved', 'be the wind ourselves',
     'They ran down the slope so fast that the kites rose behind them like two birds'))


def weather(s):
    """Bad weather spoils a plan, and a new plan turns out as well."""
    plan, ready, bad, idea, fun = s.row(PLANS)
    s.w['plan'] = plan
    opening(s)
    go(s, '{day}, {a} and {bb} wanted to {plan}.', '{a} and {bb} had a plan. They wanted to {plan}.',
       'All week, {a} and {bb} had looked forward to one thing. They wanted to {plan}.')
    s.say(f'{{a}} {ready}, and {{b}} [put on warm socks|came over early|could hardly wait].')
    s.talk('a', '[This will be the best day ever!|I am so excited!|Are you ready, {b}?]', 'glad')
    s.part()
    s.say(f'But just as they were about to start, {bad}.', f'But then {bad}.', f'They opened the door, and {bad}.')
    s.talk('a', '[Oh no!|That is not fair!] [Now we cannot {plan}.|Our day is spoiled.|Everything is ruined.]', 'sad')
    s.maybe('They [stood|sat] at the window and [looked out|sighed|watched] for a long time.',
            '{b} pressed {b.his} nose against the window.')
    s.talk('b', f'[We cannot change the weather.|Wait, I have an idea.|It will pass. But until then,] [let us|why do we not] {idea}.'
           .replace('[let us|why do we not]', 'let us'), 'think')
    s.talk('a', '[How do we do that?|Here? Now?|Do you think that will be fun?]', 'ask')
    s.talk('b', '[You will see!|Come on, I will show you!|Trust me!]', 'glad')
    s.part()
    s.say(fun + '.')
    s.say('They laughed so hard that {gg} came to see, and {g} joined in.', '{gg} heard them, [clapped|smiled] and brought {snack3}.')
    s.talk('a', '[This is even better than our plan!|I forgot all about the weather!] [That was a great idea, {b}.|Thank you, {b}.]', 'glad')
    lesson(s, 'a spoiled plan can make room for a better one', 'fun does not need good weather', 'a new idea can save the day')
    bye(s)


NEWCOMERS = (   # what the newcomer does alone, the hero's question, the answer, what they do, what it becomes
    ('drew in the dust with a stick', 'What are you drawing?', 'A whale. I used to live by the sea, and I miss it.',
     'They drew waves, crabs and a ship', 'a picture as long as the street'),
    ('hummed a song', 'What is that song?', 'My grandpa sings it. He lives far away now.',
     '{c} taught {a} the song, and they beat time on a log', 'a song for two voices'),
    ('stacked flat stones', 'How do you make it so tall?', 'You have to feel where each stone wants to sit.',
     'They stacked stones together, with steady fingers', 'a tower taller than both of them'),
    ('watched the ants', 'What are they carrying?', 'Crumbs. Look, that one has a crumb as big as itself!',
     'They laid a trail of crumbs and cheered for the ants', 'a long, busy ant parade'),
    ('folded a piece of paper', 'Is that a bird?', 'It is a crane. I can show you how.',
     'They folded and creased until their laps were full', 'a whole flock of paper birds'),
    ('juggled two pinecones', 'Can you do it with three?', 'Not yet. I always drop one.',
     'They practiced together and picked up what fell', 'a little circus with bows and cheers'))


def newcomer(s):
    """Somebody new and shy finds a friend."""
    alone, question, answer, act, result = s.pick(NEWCOMERS)
    opening(s)
    go(s, '{day}, {a} and {bb} played {at}. There they saw {cc}.', '{day}, {a} and {bb} met {at}, and somebody new was there. It was {cc}.')
    s.say('{c} had just moved there and did not know anybody.', '{c} was new, and very shy.',
          '{c} came from far away and had no friends there yet.')
    s.say(f'{{c}} sat {{spot}} and {alone}.', f'All alone, {{c}} {alone}.')
    s.part()
    s.talk('b', '[{c.He} never says a word.|Maybe {c.he} does not like us.|{c.He} looks a bit strange.]')
    s.talk('a', '[Maybe {c.he} is just shy.|I think {c.he} is lonely.|I would be shy, too, in a new place.] I will say hello.', 'kind')
    s.say('{a} walked over and sat down, not too close.', '{a} went to {c} with a smile.')
    s.talk('a', f'[Hello.|Hi there!] I am {{a}}. {question}')
    s.say('{c} looked [away|down] and [blushed|said nothing]. {a} waited.', 'At first, {c} did not answer. {a} was in no hurry.')
    s.talk('c', answer, 'shy')
    s.talk('a', '[That is wonderful!|I like that!|How nice!] May I [join you|help|try it, too]?', 'glad')
    s.part()
    s.say(f'{{c}} nodded. {act}.')
    s.say('Soon {b} came over. "Can I play, too?" asked {b}, and {c} made room.',
          '{b} watched for a while. "I am sorry that I did not say hello," said {b}, and {c} smiled at {b}.')
    s.say(f'In the end, they had made {result}.')
    s.talk('c', '[I was afraid that nobody would like me.|I was so lonely before.] [Thank you, {a}.|I am glad you came over, {a}.]', 'glad')
    s.say('From then on, there were three friends and not two.', 'The next day, {c} was waiting for {a} and {b} with a big smile.')
    lesson(s, 'a quiet one may only need a kind hello', 'it is good to make the first step', 'shy does not mean unfriendly')


PROMISES = (   # the promise, asked by g; the fun that calls; how it is kept; what would have happened
    ('feed the [hens|rabbits|geese] at noon', 'There is a [puppet show|clown] in the village!', 'filled the bowls with grain and water',
     'One hungry hen had already [pushed at|pecked at] the gate'),
    ('water the young plants while I am out', 'The [lake|pool] is warm. Come and swim!', 'carried the heavy can up and down the rows',
     'The little plants had begun to droop'),
    ('stir the soup until I come back', 'There are baby foxes behind the barn!', 'stirred and stirred until {a.his} arm was tired',
     'The soup had almost burned'),
    ('watch the baby while I hang up the wash', 'Come and see the big balloon in the sky!', 'shook the rattle and sang to the baby',
     'The baby had crawled all the way to the stairs'),
    ('keep a candle in the window for the fishermen', 'Come and dance! There is music on the square!', 'sat by the candle and kept it from going out',
     'A small boat was looking for the shore'),
    ('bring this letter to the post office today', 'We are playing pirates and we need a captain!', 'ran to the post office with the letter held tight',
     'The post office was just about to close'))


def promise(s):
    """A promise is kept although something else is more fun, or nearly forgotten."""
    what, call, keep, close = s.pick(PROMISES)
    s.let(promise=what)
    opening(s)
    go(s, '{day}, {gg} had to ask for something.', '{day}, {gg} called {a}.', '{day}, {gg} needed help.')
    s.talk('g', '[{a}, will|Please, {a}, will|{a}, can] you {promise}? [It is important.|I am counting on you.|]', 'kind')
    s.talk('a', '[I promise!|Yes, {g}. I promise.|You can count on me.]', 'glad')
    s.part()
    s.say('A little later, {bb} came running.', 'Soon {bb} knocked at the door.', 'Then {bb} called from outside.')
    s.talk('b', f'[Hurry, {{a}}!|{{a}}, come quick!] {call}', 'glad')
    late = s.random() < 0.45
    if late:
        s.say('{a} forgot everything and ran along. They had {number} minutes of fun. Then {a} stopped and turned [pale|red].')
        s.talk('a', '[Oh dear, my promise!|I forgot my promise!] I have to go back.', 'scared')
        s.say(f'{{a}} ran home as fast as {{a.he}} could. {close}. {{a.He}} {keep}.')
        s.say('It was just in time. When {g} came back, {a} told {g} the whole story.')
        s.talk('g', '[Thank you for telling me.|You remembered, and you came back.] [Next time, do the promise first.|A promise comes first.]', 'kind')
        s.say('{a} nodded. The next day, {a} was asked again, and {a} stayed until everything was done.',
              '{a} tied a string around a button so as never to forget again.')
    else:
        s.say('{a} wanted to go very much. {a.He} looked out of the door, and then back.', '{a} took two steps. Then {a.he} stopped.')
        s.talk('a', '[I would love to, but|I want to come, but|Not now.] I made a promise.', 'sad')
        s.talk('b', '[Nobody will know.|Can it not wait?|It will only take a minute.]')
        s.talk('a', '[I would know.|A promise is a promise.] [Save me a place.|Go on without me.|I will come later.]', 'think')
        s.say(f'So {{a}} stayed and {keep}.')
        s.part()
        s.say('When {g} came back, everything was in order.', '{g} came home and saw it all.')
        s.talk('g', '[You kept your word.|I knew I could trust you.] [Now go and have fun!|There is still time. Off you go!]', 'glad')
        s.say('{a} ran to {b}, and the best part was just beginning.', '{b} had saved a place for {a}. They had a grand time.',
              'And guess what? {b} came back to keep {a} company, with {snack}.')
    lesson(s, 'a promise is there to be kept', 'others can trust you when you keep your word', 'first comes the promise, and then the fun')


PLANTS = (   # the seed, what it grows into, when it is ripe, what is made of it
    ('sunflower seed', 'sunflower', 'a yellow flower as wide as a plate', 'a feast of seeds for the birds'),
    ('pumpkin seed', 'pumpkin', 'a fat orange pumpkin', 'a pumpkin pie'), ('bean', 'bean plant', 'long green beans', 'a pot of bean soup'),
    ('tomato seed', 'tomato plant', 'round red tomatoes', 'a bowl of tomato salad'),
    ('carrot seed', 'carrot', 'a carrot as long as an arm', 'a carrot cake'),
    ('strawberry plant', 'strawberry plant', 'sweet red strawberries', 'a jar of strawberry jam'),
    ('melon seed', 'melon', 'a round striped melon', 'juicy slices for everyone'),
    ('tulip bulb', 'tulip', 'a tulip with {hue} petals', 'a birthday surprise for {g}'))


def garden(s):
    """Waiting for a plant takes patience."""
    seed, plant, ripe, made = s.pick(PLANTS)
    s.w.update(seed=seed, plant=plant)
    opening(s)
    go(s, '{day}, {gg} gave {a} a {seed}.', '{day}, {a} found a {seed} in a [drawer|tin|paper bag], and {gg} knew what it was.')
    s.talk('g', 'Put it in the ground, water it every day, and wait. [One day it will be a {plant}.|You will be surprised.]', 'kind')
    s.say('{a} dug a [small|deep|neat] hole, put in the {seed} and covered it with soil.')
    s.part()
    s.say('The next morning, {a} ran to look. There was only [brown|bare] earth. {a.He} looked on the second day and the third. Still nothing!')
    s.talk('a', '[Why does it not grow?|When will it come up?|Is it asleep?]', 'ask')
    s.talk('g', '[It needs time.|Good things are slow.|It is busy under the ground.] [You cannot hurry it.|Be patient.|Just wait a bit longer.]', 'kind')
    way = s.pick(('dig', 'snail', 'dry'))
    if way == 'dig':
        s.say('But {a} could not wait. {a.He} took a spoon and dug it up. There was a tiny white root!')
        s.talk('g', 'Oh, {a}! Now it has to start again. Tuck it in like a baby.', 'kind')
        s.say('{a} tucked it in very gently, and this time {a.he} left it alone.')
    elif way == 'snail':
        s.say('At last a green tip came up. But one morning, [a slug|a snail|a caterpillar] had eaten half of a leaf.')
        s.say('{bb} helped {a} to [carry it to the weeds|find it a new home in the hedge] and to put a ring of eggshells around the {plant}.')
    else:
        s.say('Then it got hot, and there was no rain for {number} days. The soil was dry and cracked.')
        s.say('Every evening, {a} and {bb} carried water from the well, cup by cup.')
    s.part()
    s.say('Days went by, and then weeks. {a} [pulled the weeds|sang to it|watered it] and waited.',
          'The sun shone, the rain fell, and {a} waited. {a.He} did not even [complain|peek] once.')
    s.say(f'And then, one morning, there {"were" if ripe.endswith("s") and not ripe.startswith("a ") else "was"} {ripe}!')
    s.talk('a', '[Look, {g}! It is here!|Come and see, {g}!|It really grew!]', 'glad')
    s.say('{a} {joy}.')
    s.say(f'Together they turned it into {made}.' if 'tulip' not in seed else f'It was {made}, who put it on the table.',
          f'In the end, there was {made}.')
    s.talk('g', '[See?|Well done, {a}.] [You waited, and it was worth it.|You took good care of it.|It grew because you were patient.]', 'kind')
    lesson(s, 'good things take time', 'a bit of care every day makes things grow', 'waiting is easier when you have something to do')


SKILLS = (   # world, the skill, how it fails, the tip, how it is practiced, how it works out
    ('k', 'ride a bike', 'wobbled, tipped over and scraped {a.his} knee', 'Look where you want to go, and keep your feet moving.',
     'up and down the lane', 'The bike rolled straight, past the mailbox and all the way to the corner'),
    ('', 'swim', 'swallowed water and coughed', 'Blow bubbles first, and kick with long legs.', 'in the shallow water',
     'The water carried {a.him}, and {a.he} swam to the other side'),
    ('k', 'whistle', 'blew and blew, but only air came out', 'Make your lips small and round, and blow softly.', 'on the way to school',
     'Out came a thin, clear note, and a {bird} answered'),
    ('k', 'tie {a.his} shoes', 'made a knot that nobody could untie', 'Make two rabbit ears and cross them.', 'with a piece of yarn',
     'There it was, a bow with two fine loops'),
    ('', 'climb the {tree} tree', 'slid down and landed on {a.his} bottom', 'Always hold on with three, and move one.', 'on the lowest branch',
     '{a} sat at the very top and could see the whole valley'),
    ('', 'skip stones', 'threw a stone, and it went plop', 'Take a flat one, and throw it low from the side.', 'until {a.his} arm was sore',
     'The stone hopped one, two, three, four times'),
    ('', 'row the boat', 'went around in circles', 'Pull with both sides at the same time.', 'close to the shore',
     'The boat went straight across, as if on a string'),
    ('k', 'read', 'mixed up all the letters', 'Say each letter out loud, and then push them together.', 'with signs, labels and cereal boxes',
     'The letters turned into a word, and the word was "home"'),
    ('', 'catch the ball', 'closed both eyes, and the ball bounced off {a.his} head', 'Watch the ball all the way.', 'against the barn wall',
     'Smack! The ball was safe in {a.his} arms'))


def skill(s):
    """Too small or too clumsy at first; practice does it."""
    what, fails, tip, where, success = s.row(SKILLS)
    s.let(skill=what)
    opening(s)
    s.say('All of the others could {skill}, but {a} could not.', 'More than anything, {a} wanted to {skill}.',
          '{a} had a wish. {a.He} wanted to {skill}, just like {a.his} big [brother|sister|cousin].')
    go(s, f'{{day}}, {{a}} tried it. {{a.He}} {fails}.', f'{{day}}, {{a}} wanted to try. But {{a.he}} {fails}.')
    s.say('{a.He} tried again, and it went wrong again.', 'The second time was no better.', 'The next try was even worse.')
    s.talk('a', '[I am too small.|I will never learn it.|It is too hard.] [I give up!|Everyone else can do it.|]', 'sad')
    s.w['h'], s.w['hh'] = (s.w['b'], s.w['bb']) if s.random() < 0.5 else (s.w['g'], s.w['gg'])
    s.part()
    s.say('{hh} had seen it.', '{hh} sat down beside {a}.', '{hh} came by and [stopped|smiled].')
    s.talk('h', '[You only cannot do it yet.|I could not do it at first, either.|Do you know how often I failed? A hundred times!]', 'kind')
    s.talk('a', '[Really?|Is that true?|How did you learn it?]', 'ask')
    s.talk('h', f'[Really.|Yes. Listen.|Here is a trick.] {tip}', 'kind')
    s.say(f'So {{a}} practiced {where}. {{a.He}} practiced on Monday and on Tuesday and all week long.',
          f'Every day, {{a}} practiced {where}. Some days went well, and some did not.')
    s.maybe('Once, {a} got so angry that {a.he} [kicked a bucket|threw {a.his} hat]. But the next day, {a.he} tried again.',
            '{h} never laughed when it went wrong.', '"A little better," said {h} each time.', p=0.6)
    s.part()
    s.say(f'And then, one day, it worked. {success}!', f'Then {{a}} took a deep breath and tried once more. {success}!')
    s.talk('a', '[I can do it!|Did you see that?|Look, {h}, look!]', 'glad')
    s.say('{h} clapped and cheered.', '{a} {joy}.', '{h} hugged {a} and {a} laughed.')
    thanks(s, 'h')
    s.say('Later, {a} saw {cc}, who could not do it yet. "Come, I will show you a trick," said {a}.',
          'That evening, {a} showed it to everyone, twice.')
    lesson(s, 'practice makes hard things easy', 'nobody can do everything at first', 'one more try can make the difference')


MIXUPS = (   # what the hero sees, what it seems to mean, the truth as the friend tells it, the happy end
    ('{b} [whispered with|talked quietly to] {c} and stopped when {a} came near', '{b} does not like me anymore',
     'We were planning a surprise for your birthday', 'There was a cake with {number} candles, and {b} had painted a big card for {a}'),
    ('{b} walked past and did not wave', '{b} is angry with me', 'I lost my glasses, and everything looks like fog',
     'They searched together, and there were the glasses, {spot}'),
    ('{b} carried away the {hue} ball that {a} had given {b.him}', '{b} threw away my present',
     'The ball had a hole, so I took it to be mended', '{b} had even painted both their names on the ball'),
    ('the last {fruit} was gone and {b} was wiping {b.his} mouth', '{b} ate my {fruit}',
     'That was a {bird}. I only drank some water', 'And there sat a fat {bird}, {spot}, with the {fruit} in front of it'),
    ('{b} did not come out to play for {number} days', '{b} has a new friend',
     'My little brother was sick, and I had to read to him', 'They made soup and a funny card for the little brother, and he sat up and laughed'),
    ('{b} tore up the drawing that {a} had made', '{b} hates my drawing',
     'The baby did that. I was only picking up the pieces', 'They taped the drawing together, and it looked like a fine puzzle'))


def mixup(s):
    """Things are not what they seem; asking clears it up."""
    sees, seems, truth, end = s.pick(MIXUPS)
    s.let(sees=sees, seems=seems, told=truth)
    opening(s)
    s.say('{bb} was {a.his} best friend. They did everything together.'.replace('{bb}', '{b}' + (' the {b.kind}' if s.world == 'n' else '')),
          '{a} and {bb} played together every day.')
    go(s, '{day}, something strange happened {at}. {sees}.'.replace('. {sees}', ': {sees}'), '{day}, {a} went to {place} and saw something. {sees}.'
       if s.w['sees'].startswith(str(s.w['b'])) else '{day}, {a} came to {place} and was surprised. {sees}.')
    s.say('{a} felt a [sting|cold stone|knot] inside. "{seems}," thought {a}.', '"{seems}," thought {a}, and {a.his} eyes got wet.')
    s.part()
    s.say('{a} went home and did not want to [play|eat|talk to anyone].', '{a} hid {spot2} and cried.', '{a} sat at home and stared at the wall.')
    s.talk('g', '[What happened?|Why are you so quiet?|Where is {b} today?]', 'kind')
    s.talk('a', '{seems}. [I do not want to see {b} ever again.|I will not talk to {b} anymore.|I am so sad.]', 'sad')
    s.talk('g', '[Are you sure?|Do you know that, or do you only think it?] [Did you ask {b}?|Why do you not ask?]', 'kind')
    s.say('{a} had not asked. So {a} [went to find|looked for] {b} and took a deep breath.',
          '{a} thought about that for a long time. Then {a} went to {b}.')
    s.part()
    s.talk('a', '[I have to ask you something.|Are you still my friend?] [Today I saw something|I saw something], and it made me sad.', 'shy')
    s.say('{a} told {b} everything. {b} [opened {b.his} eyes wide|began to laugh, but kindly|was very surprised].')
    s.talk('b', '[Oh, {a}!|Oh no, that is not how it was!] {told}. [You are my best friend!|I would never want to hurt you.]', 'kind')
    s.talk('a', '[I was so silly.|Oh! I was all wrong.] I am sorry that I did not ask you [first|right away].', 'glad')
    s.say(end + '.')
    lesson(s, 'it is better to ask than to guess', 'things are not always what they seem', 'talking can clear up a mistake')
    bye(s)


TROUBLES = (   # world, what happens to the hero later, the call, how the one who was fed can help
    ('', 'A thick fog came up, and {a} could not see the path', 'Which way is home?', 'I know every stone here. Follow my voice.'),
    ('', '{a} slipped into a deep hole and could not get out', 'Is anybody there?', 'I have a rope. Hold on, and I will pull.'),
    ('', 'The wind blew {a.his} {hue} hat up into a {tree} tree', 'I will never get it back!', 'I can climb well. Wait here.'),
    ('', 'The strap of {a.his} bag broke, and {number} {fruit} tarts rolled down the road', 'Stop, stop!',
     'I will catch them at the bottom!'),
    ('', 'It began to pour, and {a} had no umbrella', 'I am soaked and cold!', 'Come into my house. There is a fire and a dry towel.'),
    ('', '{a} was stuck in the mud up to {a.his} knees', 'I cannot move!', 'Take hold of this branch, and do not let go.'))


def favor(s):
    """Food is shared with a stranger, who helps in turn."""
    trouble, call, answer = s.row(TROUBLES)
    s.let(trouble=trouble)
    opening(s)
    go(s, '{day}, {a} went to {place} with {snack} for lunch.', '{day}, {a} took {snack} along for lunch and walked to {place}.')
    s.say('{spot} sat {cc}, who looked [thin|tired|hungry|sad].', 'There {a} met {cc}, who sat {spot} and looked [tired|hungry|thin].')
    s.talk('a', '[Hello!|Good day!] [Are you all right?|Why are you so sad?|Is something wrong?]', 'kind')
    s.talk('c', '[I have not eaten since yesterday.|My lunch fell into the water.|I am so hungry that my tummy growls.]', 'sad')
    s.say('{a} looked at the food. It was not much, and {a} was hungry, too.', '{a} had looked forward to lunch all morning.',
          '{a} thought about it, but not for long.')
    s.talk('a', '[Here, take half of mine.|We can share.|There is enough for two.]', 'kind')
    s.talk('c', '[Thank you! I will not forget it.|You are kind. I hope that I can help you one day.]', 'glad')
    s.maybe('It was not enough to be full, but it tasted better than ever.', 'They ate every crumb and talked about {bug}.', p=0.6)
    s.part()
    s.say('{number} days later, {a} was on the way home. {trouble}.', 'Not long after, {a} was in trouble. {trouble}.',
          'Then, on the way back, something went wrong. {trouble}.')
    s.talk('a', call, 'scared')
    s.say('Somebody came running. It was {c}!', 'And who came around the corner? It was {c}!', 'A face popped up. It was {c}!')
    s.talk('c', f'[Do not worry, {{a}}!|There you are, {{a}}!] {answer}', 'kind')
    s.say('And that is just what happened. Soon everything was [well|fine|all right] again.',
          'It did not take long, and {a} [was safe|could smile|was happy] again.')
    thanks(s, 'c')
    s.talk('c', '[You shared with me, and now I could help you.|You helped me first.|That is what friends are for.]', 'glad')
    lesson(s, 'kindness comes back', 'what you give away can come back to you', 'a shared lunch can make a friend')
    s.maybe('From then on, {a} and {c} often had lunch together.', 'And the next time, {c} brought {snack2} for both of them.')


PLOTS = [lost, share, fear, rule, rescue, build, contest, weather, newcomer, promise, garden, skill, mixup, favor]


def draw(rng):
    """One tale, whatever its length."""
    s = cast(rng)
    s.pick(PLOTS)(s)
    return tidy(s.text)


def stories(seed=1337, count=24000):
    """Yield `count` pairwise distinct stories; a smaller count gives the beginning of the same list."""
    rng, seen = random.Random(seed), set()
    while len(seen) < count:
        text = draw(rng)
        sentences = re.split(r'(?<=[.!?"])\s+', text)
        key = hashlib.sha1(text.encode()).digest()
        # draw again: too short or long, a sentence told twice, or a story told before
        if 80 <= len(text.split()) <= 250 and len(set(sentences)) == len(sentences) and key not in seen:
            seen.add(key)
            yield text


if __name__ == '__main__':
    for story in stories(seed=random.randrange(10**6), count=5):
        print(story, end='\n\n' + 79 * '-' + '\n\n')
